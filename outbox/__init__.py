"""A transactional outbox dispatcher: every committed row change reaches its subscribers."""

__version__ = "0.1.0"
