"""Code that the experiments share: a file of finished runs, and statistics over seeds."""
