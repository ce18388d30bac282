"""Network helpers: where a share server is reached."""
