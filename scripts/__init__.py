"""Benchmarks and data collection: a package for each question. Run one as `python -m scripts.tuning.ablation`."""
