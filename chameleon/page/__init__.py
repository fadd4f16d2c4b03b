"""One page about a run, or about all runs of a zoo: what was measured, as data and as HTML, also while it goes on."""
