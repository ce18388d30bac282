"""One client each for what lies outside; each translates its system's errors, once."""
