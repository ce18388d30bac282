"""Share servers: rows, limits and health."""
