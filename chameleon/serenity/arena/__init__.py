"""Offsets for tensors in one piece of memory."""
