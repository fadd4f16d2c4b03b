"""Injects faults into the real components of a tuning run, and counts what they break."""
