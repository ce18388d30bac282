"""Share drivers: storage only."""
