"""Compute helpers: who serves."""
