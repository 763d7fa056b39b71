"""Related records are embedded behind the record's own keys, and not a byte of either is written anew."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outbox.core.expansions import embed, names

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,8}", fullmatch=True)


@pytest.mark.parametrize(
    ("expands", "found"),
    [("", []), ("a", ["a"]), ("tags, changelogs", ["tags", "changelogs"]), ("a,b, a", ["a", "b"])],
)
def test_names_are_in_the_order_of_the_config(expands: str, found: list[str]) -> None:
    """Each once."""
    assert names(expands) == found


@pytest.mark.parametrize(
    ("data", "expands", "sent"),
    [
        ('{"id":1}', "tags,logs", '{"id":1,"tags":[ "a,}", 1.0 ],"logs":null}'),
        ('{"id":1}', "logs,tags", '{"id":1,"logs":null,"tags":[ "a,}", 1.0 ]}'),
        ('{"id" : 1 \n} ', "logs", '{"id" : 1,"logs":null}'),
        ("{}", "logs", '{"logs":null}'),
        ("{ }", "logs", '{"logs":null}'),
        ('{"tags":[]}', "tags", '{"tags":[]}'),
        ('{"t\\u0061gs":[]}', "tags,logs", '{"t\\u0061gs":[],"logs":null}'),
        ('{"a":{"tags":1}}', "tags", '{"a":{"tags":1},"tags":[ "a,}", 1.0 ]}'),
        ('{"id":1}', "unknown", '{"id":1}'),
        ('{"id":1}', "", '{"id":1}'),
        ("[1]", "tags", "[1]"),
        ("null", "tags", "null"),
        ('{"n":' + "9" * 5000 + "}", "logs", '{"n":' + "9" * 5000 + ',"logs":null}'),
        ('{"n":' + "[" * 5000 + "]" * 5000 + "}", "logs", '{"n":' + "[" * 5000 + "]" * 5000 + ',"logs":null}'),
        ('{"n":' + '{"tags":' * 5000 + "1" + "}" * 5001, "", '{"n":' + '{"tags":' * 5000 + "1" + "}" * 5001),
    ],
)
def test_what_is_asked_for_stands_behind_the_record(data: str, expands: str, sent: str) -> None:
    """A name that was not taken, and one that the record has itself, are left out."""
    assert embed(data, '{"logs":null,"tags":[ "a,}", 1.0 ],"others":{}}', expands) == sent


@settings(deadline=None)
@given(
    record=st.dictionaries(st.text(), VALUES), taken=st.dictionaries(NAMES, VALUES, min_size=1), escapes=st.booleans()
)
def test_any_record_and_any_expansions_are_read_back(
    record: dict[str, object], taken: dict[str, object], *, escapes: bool
) -> None:
    """A parser finds the record's keys, then the expands, with the values that they had; the record's text is kept."""
    data = json.dumps(record, ensure_ascii=escapes)
    expansions = "{" + ",".join(f'"{name}":{json.dumps(value, ensure_ascii=escapes)}' for name, value in taken.items())
    sent = embed(data, expansions + "}", ",".join(reversed(taken)))
    assert sent.startswith(data[:-1])
    assert list(json.loads(sent)) == [*record, *(name for name in reversed(taken) if name not in record)]
    assert json.loads(sent) == taken | record
