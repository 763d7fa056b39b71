"""Makes text of strangers safe to show, on a terminal and in a log: nothing in it moves a cursor or turns a line."""

import re


def clean(text: str) -> str:
    """Write out all that is not printable, line breaks too, as Python's escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def clean_json(text: str) -> str:
    r"""Write out what is not printable in JSON text as its \u escapes: the same JSON, for machines and terminals."""
    return "\n".join(line if line.isprintable() else _escape(line) for line in text.split("\n"))


def _escape(line: str) -> str:
    return re.sub(r"[^ -~]", lambda found: found[0] if found[0].isprintable() else _in_json(found[0]), line)


def _in_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[n : n + 2].hex()}" for n in range(0, len(units), 2))
