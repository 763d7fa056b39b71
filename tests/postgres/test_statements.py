"""The statements of the happy path are short enough for psycopg to remember where their placeholders are."""

import pytest
from psycopg import _queries

from outbox.postgres import queue, routing
from outbox.postgres.statements import KEPT_LENGTH, statement


@pytest.mark.parametrize("text", [routing._ROUTE, routing._ROUTE_AND_TELL, queue._CLAIM, queue._SETTLE, queue._RELEASE])  # noqa: SLF001 - no other way to them
def test_a_statement_of_each_delivery_is_kept(text: bytes) -> None:
    """A longer one would be read anew each time."""
    assert len(text) <= KEPT_LENGTH


def test_psycopg_keeps_statements_of_that_length() -> None:
    """Its own limit is no public name; a lower one would cost time, and nothing else would tell."""
    assert _queries.MAX_CACHED_STATEMENT_LENGTH >= KEPT_LENGTH


def test_a_statement_says_the_same_without_its_comments() -> None:
    assert statement("  select 1, -- one\n    %(two)s\n  from x -- and so on") == b"select 1, %(two)s from x"
