"""Ports and networks of Neutron."""
