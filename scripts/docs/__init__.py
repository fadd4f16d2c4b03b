"""For the pages."""
