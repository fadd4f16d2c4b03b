"""Fleets of devices: what runs on a device, and how the throughput grows with their number."""
