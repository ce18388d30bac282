"""Backends, put together from a driver and helpers."""
