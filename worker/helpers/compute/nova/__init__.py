"""Share servers as virtual machines of Nova."""
