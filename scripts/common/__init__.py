"""What the experiments share: a file of finished runs, statistics over seeds."""
