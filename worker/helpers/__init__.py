"""Compute helpers supply share servers; network helpers supply the addresses they serve on."""
