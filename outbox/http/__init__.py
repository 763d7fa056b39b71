"""The way out: requests to subscribers."""
