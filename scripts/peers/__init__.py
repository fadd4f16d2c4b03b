"""Measures the peers: how much memory other runtimes need for the same networks, and how other tuners search."""
