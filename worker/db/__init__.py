"""The truth: tables, sessions, and the plain functions that read and write them."""
