"""File servers that export shares."""
