"""What each request writes when it is accepted."""
