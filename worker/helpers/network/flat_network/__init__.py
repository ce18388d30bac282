"""Addresses on a flat network that exists already."""
