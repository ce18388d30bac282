"""Acceptance: for each verb, the handler that writes an accepted request to the database."""
