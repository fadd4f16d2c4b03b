"""One file for each command: what `chameleon tune`, `compile`, `bench`, `memory`, `zoo` and `autotvm` do."""
