"""Benchmarks and data collection, a package for each question. Run a script as `python -m scripts.tuning.ablation`."""
