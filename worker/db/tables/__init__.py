"""Definitions of all tables, by subject."""
