"""Records of tuning in the formats of other tools, and the care of files of records."""
