"""From a name or a file to one Relax function."""
