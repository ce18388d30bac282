"""Requests: one versioned payload for each verb."""
