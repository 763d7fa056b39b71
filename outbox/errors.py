"""Every error that a user may see. Each message says what was wrong and what to do; none comes with a traceback."""


class OutboxError(Exception):
    """Something failed; the message says what. The command exits 1."""


class UsageError(OutboxError):
    """What was asked for makes no sense; the message says what is accepted. The command exits 2."""


class SchemaError(OutboxError):
    """The database's schema is not the one that this program knows."""


class UnsentError(OutboxError):
    """Nothing was sent, for a reason on our side, such as no file descriptors or no proxy. It costs nobody a try."""
