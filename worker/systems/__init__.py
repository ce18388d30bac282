"""One client for each external system; each translates its system's errors, once."""
