"""Finds the order of a graph's steps that needs the least memory, with a proof."""
