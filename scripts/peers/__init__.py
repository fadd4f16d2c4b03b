"""Measures how much memory other runtimes (the peers) need for the same networks, each in its own environment."""
