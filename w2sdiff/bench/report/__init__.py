"""Pages people want to open: the report, and the blind vote."""
