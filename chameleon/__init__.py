"""Chameleon: fast schedules for Apache TVM with few hardware measurements."""

__version__ = "0.1.0"
