"""What records cost as they become many."""
