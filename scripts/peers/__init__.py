"""What other runtimes need for the same networks; each runs in an environment of its own."""
