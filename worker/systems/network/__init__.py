"""Networking of one Linux host, and DHCP."""
