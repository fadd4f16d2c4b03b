"""Offsets for tensors in one piece of memory, the arena."""
