"""Addresses, segments and DHCP leases."""
