"""What may be asked: one versioned payload a verb."""
