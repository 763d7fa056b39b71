"""Expands: how related records, taken beside an event, are embedded in its record (contract §1). Text in, text out.

The record is never written anew: its bytes stay as they were captured.
"""

import json
import re

# Of JSON only: a string without an end would take it quadratic time.
_TOKENS = re.compile(r'(?P<string>"[^"\\]*(?:\\.[^"\\]*)*")(?P<colon>\s*:)?|[{}\[\],]', re.DOTALL)


def names(expands: str) -> list[str]:
    """Return the names that a config's `expands` asks for, in its order, each once."""
    return list(dict.fromkeys(name for each in expands.split(",") if (name := each.strip())))


def embed(data: str, expansions: str, expands: str) -> str:
    """Return the record with what `expands` names of the expansions behind its own keys, in the order of `expands`.

    `data`: the record as JSON text. `expansions`: a JSON object as the trigger writes it, without white space around
    its members. A name that was not taken is left out, and so is one that the record has as a key of its own. A record
    that is no object stays as it is.
    """
    wanted = names(expands)
    if not wanted or not data.lstrip().startswith("{"):
        return data
    record, taken = _members(data), _members(expansions)
    added = ",".join(f'"{name}":{taken[name]}' for name in wanted if name in taken and name not in record)
    if not added:
        return data
    return f"{data.rstrip()[:-1].rstrip()}{',' if record else ''}{added}}}"


def _members(text: str) -> dict[str, str]:
    """Return the values of an object by their keys, each as the text that it is.

    A parser would write the values anew, and one that calls itself for what is nested ends at a thousand levels.
    """
    members = {}
    name, begin, depth = "", 0, 0
    for token in _TOKENS.finditer(text):
        match token[0][0]:
            case '"':
                if depth == 1 and token["colon"]:
                    name, begin = json.loads(token["string"]), token.end()
            case "{" | "[":
                depth += 1
            case ",":
                if depth == 1:
                    members[name] = text[begin : token.start()]
            case _:
                depth -= 1
                if depth == 0 and begin:
                    members[name] = text[begin : token.start()]
    return members
