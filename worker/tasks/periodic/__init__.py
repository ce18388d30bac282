"""What the reconciler starts by the clock."""
