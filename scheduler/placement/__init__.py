"""Placement: choose the storage pool and the share network of a new share."""
