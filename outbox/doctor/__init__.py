"""`outbox doctor`: what is looked at of all that a daemon depends on. Nothing here changes anything."""
