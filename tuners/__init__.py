"""Chameleon inside the tools that people already tune with (hosts). Importing this package imports no TVM."""
