"""Text of strangers is shown so that no terminal obeys it, and none of it is lost."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.printable import clean, clean_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ümläut 漢字 😀", "plain ümläut 漢字 😀"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\x9b31m", r"\x9b31m"),
        ("user\u202egpj.exe", r"user\u202egpj.exe"),
        ("\u2028\u200b\ufeff", r"\u2028\u200b\ufeff"),
        ("\x00\x7f", r"\x00\x7f"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    """Escape sequences, line breaks, C1 controls, and characters that turn or hide text."""
    assert clean(text) == shown


@given(st.text())
def test_what_is_clean_can_be_printed(text: str) -> None:
    """Whatever it was."""
    assert clean(text).isprintable()


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_clean_json_is_the_same_json(value: object) -> None:
    """A machine reads what it would have read; a terminal obeys nothing of it, line breaks of the layout aside."""
    for indent in (None, 2):
        text = clean_json(json.dumps(value, ensure_ascii=False, indent=indent))
        assert text.replace("\n", "").isprintable()
        assert json.loads(text) == value
