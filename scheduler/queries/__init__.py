"""What each request reads."""
