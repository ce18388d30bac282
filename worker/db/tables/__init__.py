"""Every table, by subject."""
