"""Studies: one file for each finding."""
