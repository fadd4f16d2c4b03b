"""Experiments on the search: how good is it, and what does it cost?"""
