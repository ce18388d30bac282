"""Storage of share data on one machine."""
