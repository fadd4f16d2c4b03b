"""The job around a model: load it, extract its tasks, build and measure candidates, keep records, compile the best."""
