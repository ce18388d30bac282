"""The embedded service: everything in one process tree (``sharewright up``)."""
