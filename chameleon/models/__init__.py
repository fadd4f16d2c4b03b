"""Load a network, from a name or a file, as one Relax function."""
