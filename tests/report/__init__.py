"""Every form of the report, and comparisons of two."""
