"""Where records of tuning are kept: files of JSON lines, SQLite, PostgreSQL; one interface, and one URL for each."""
