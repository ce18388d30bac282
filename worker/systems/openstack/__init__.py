"""OpenStack clients."""
