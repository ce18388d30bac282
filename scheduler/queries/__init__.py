"""Queries: for each verb that only reads, the function that answers it."""
