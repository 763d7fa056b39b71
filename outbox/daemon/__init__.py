"""The dispatching daemon."""
