"""Backends, assembled from a driver and helpers."""
