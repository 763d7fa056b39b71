"""Statements as they are sent: without the comments and the indentation in which they are written."""

import re
from typing import LiteralString

KEPT_LENGTH = 4096
"""psycopg remembers where the placeholders of a statement are, up to this length. A longer one it reads anew each time,
which takes as long as a tenth of a route."""

_COMMENT = re.compile(r"--[^\n]*")
_SPACE = re.compile(r"\s+")


def statement(text: LiteralString) -> bytes:
    """Return it for psycopg's execute. Not for texts with `--` or a line break within quotes."""
    return _SPACE.sub(" ", _COMMENT.sub("", text)).strip().encode()
