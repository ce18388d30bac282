"""Runs any saga durably; knows nothing of shares."""
