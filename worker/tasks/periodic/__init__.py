"""The reconciler and the periodic tasks that it starts."""
