"""Processes that stay warm, and that may crash or hang without harm to the others. Knows no TVM."""
