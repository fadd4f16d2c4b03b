"""Experiments on memory: how much do networks need, and how fast is that found?"""
