"""Shells, which run commands on the machine of a share server."""
