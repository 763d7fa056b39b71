"""Expands: how related records, taken beside an event, are embedded in its record (contract §1). Text in, text out.

The record is never written anew: its bytes stay as they were captured.
"""

import json

# Numbers stay text: a numeric of PostgreSQL may have more digits than Python is willing to read.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)


def names(expands: str) -> list[str]:
    """Return the names that a config's `expands` asks for, in its order, each once."""
    return list(dict.fromkeys(name for each in expands.split(",") if (name := each.strip())))


def embed(data: str, expansions: str, expands: str) -> str:
    """Return the record with what `expands` names of the expansions behind its own keys, in the order of `expands`.

    `data`: the record as JSON text. `expansions`: a JSON object as the trigger writes it, without white space around
    its members. A name that was not taken is left out, and so is one that the record has as a key of its own. A record
    that is no object stays as it is.
    """
    record = _DECODER.decode(data)
    if not isinstance(record, dict):
        return data
    taken = _members(expansions)
    added = ",".join(f'"{name}":{taken[name]}' for name in names(expands) if name in taken and name not in record)
    if not added:
        return data
    return f"{data.rstrip()[:-1].rstrip()}{',' if record else ''}{added}}}"


def _members(text: str) -> dict[str, str]:
    """Return the values of an object by their keys, each as the text that it is."""
    members = {}
    at, last = 1, len(text) - 1
    while at < last:
        name, colon = _DECODER.raw_decode(text, at)
        _, end = _DECODER.raw_decode(text, colon + 1)
        members[name] = text[colon + 1 : end]
        at = end + 1
    return members
