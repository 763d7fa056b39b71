"""Each rule of a postback config, with the message that its breach gives."""

import re
import urllib.parse
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from yarl import URL

from outbox.core.config_document import to_document
from outbox.core.config_rules import FIELDS, InvalidConfigError, Value, validate
from outbox.core.model import PostbackConfig
from outbox.core.url_pattern import URL_PATTERN

LEAST: dict[str, object] = {
    "location_id": "23948sdnfia1129i9asf92",
    "resource": "contact",
    "url": "https://a.example/r",
}
# Parts that are right, with now and then one that is not: both sides of each rule are met often.
AUTHORITIES = st.builds(
    "{}{}".format,
    st.one_of(
        st.sampled_from(
            ["[::1]", "[::ffff:1.2.3.4]", "127.0.0.1", "127.1", "a.b.", "XN--a", "u@h", "[::1%25e]", "a\\b"]
        ),
        st.text("aA0-_.", min_size=1, max_size=9),
        st.text('aA0.:/?#[]@%&=+-_~ \\\\\t"é', max_size=9),
    ),
    st.one_of(st.just(""), st.integers(-1, 70_000).map(":{}".format), st.sampled_from([":", ":+8", ":080", ":8_0"])),
)
TARGETS = st.one_of(
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=40),
    st.text(st.characters(max_codepoint=0x17F), max_size=9),
)


def config(**fields: object) -> PostbackConfig:
    """Return a stored config with basic auth, as an edit finds it."""
    at = datetime(2018, 10, 11, 14, 42, 50, 900_000, tzinfo=UTC)
    stored: dict[str, Any] = {
        **validate(LEAST, min_attempt_interval=300), "id": UUID(int=7), "revision": 3, "paused_at": None,
        "circuit_opened_at": None, "exhausted_at": None, "disabled_at": None, "disabled_reason": None,
        "created_at": at, "modified_at": at, "deleted_at": None,
        "basic_auth_username": "gAAAAAuser", "basic_auth_password": "gAAAAApassword",
        "signing_secrets": "gAAAAAsecrets",
    }  # fmt: skip
    return PostbackConfig(**(stored | fields))


def create(raw: dict[str, object], *, any_location: bool = False) -> dict[str, Value]:
    return validate(raw, min_attempt_interval=300, any_location=any_location)


def faults(raw: dict[str, object], current: PostbackConfig | None = None) -> dict[str, list[str]]:
    with pytest.raises(InvalidConfigError) as caught:
        validate(raw, min_attempt_interval=300, current=current)
    return caught.value.errors


def test_a_create_fills_in_the_defaults_of_the_contract() -> None:
    """What is not named has the default that the contract gives it."""
    assert create(LEAST) == {
        **LEAST, "product_transaction_id": None, "on_create": True, "on_update": True, "on_delete": True,
        "is_active": True, "number_of_attempts": 1, "attempt_interval": 300, "basic_auth_username": None,
        "basic_auth_password": None, "expands": "", "format": "api-default", "backoff": "fixed",
        "backoff_limit": 86_400, "strict_order": "off", "rate_limit": None,
    }  # fmt: skip


def test_the_source_documents_example_is_accepted() -> None:
    """The request of the contract's own workflow passes as it is written."""
    raw: dict[str, object] = {
        "attempt_interval": 300, "basic_auth_username": None, "basic_auth_password": None, "expands": "",
        "format": "api-default", "is_active": "1", "location_id": "23948sdnfia1129i9asf92", "number_of_attempts": 1,
        "on_create": "1", "on_delete": "1", "on_update": "1", "resource": "contact",
        "url": "https://127.0.0.1/receiver",
    }  # fmt: skip
    assert create(raw) == create({**LEAST, "url": raw["url"]})


@pytest.mark.parametrize("name", ["on_create", "on_update", "on_delete", "is_active"])
def test_booleans_have_eight_forms_and_no_others(name: str) -> None:
    """true/false and 1/0, each also as a string."""
    for yes, no in [(True, False), (1, 0), ("1", "0"), ("true", "false")]:
        assert (create({**LEAST, name: yes})[name], create({**LEAST, name: no})[name]) == (True, False)
    wrongs: list[object] = [None, 2, 1.0, "True", "yes", "", [], -1]
    for wrong in wrongs:
        [message] = faults({**LEAST, name: wrong})[name]
        assert message.startswith(f"{name} must be true or false")


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("number_of_attempts", 1, 5), ("attempt_interval", 300, 86_400), ("backoff_limit", 1, 86_400)],
)
def test_integers_keep_their_limits_and_are_no_floats_or_booleans(name: str, least: int, most: int) -> None:
    """Whole numbers and their decimal strings, limits included."""
    for right in [least, most]:
        assert create({**LEAST, name: right})[name] == create({**LEAST, name: str(right)})[name] == right
    for wrong in [least - 1, most + 1, float(least), True, None, "", f"{least}.0", f" {least}", "٣", "1e3", 10**30]:
        assert faults({**LEAST, name: wrong}) == {name: [f"{name} must be a whole number from {least} to {most}."]}


def test_the_operator_may_lower_the_floor_of_the_interval() -> None:
    """OUTBOX_MIN_ATTEMPT_INTERVAL is the least attempt_interval, and the message names it."""
    raw = {**LEAST, "attempt_interval": 5}
    assert validate(raw, min_attempt_interval=5)["attempt_interval"] == 5
    with pytest.raises(InvalidConfigError, match="from 6 to 86400"):
        validate(raw, min_attempt_interval=6)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("location_id", 36),
        ("resource", 128),
        ("basic_auth_username", 512),
        ("basic_auth_password", 512),
        ("expands", 512),
    ],
)
def test_strings_keep_their_length(name: str, most: int) -> None:
    """Length is counted in characters, and the message says both the limit and what was given."""
    raw: dict[str, object] = {**LEAST, "basic_auth_username": "user"}
    assert create({**raw, name: "x" * most})[name] == "x" * most
    assert faults({**raw, name: "x" * (most + 1)}) == {
        name: [f"{name} must have at most {most} characters, and has {most + 1}."]
    }


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.kind == "string"])
@pytest.mark.parametrize("wrong", [1, True, ["x"], {"x": 1}, "a\0b", "a\ud800"])
def test_strings_are_strings_that_postgres_can_hold(name: str, wrong: object) -> None:
    """Nothing is turned into a string, and NUL and lone surrogates are refused."""
    [message] = faults({**LEAST, "basic_auth_username": "user", name: wrong})[name]
    assert message.startswith(f"{name} must ")


EXPANDS_FAULT = "expands must be names separated by commas, such as changelogs,tags, and 16 of them at most."


@pytest.mark.parametrize(
    ("raw", "errors"),
    [
        ({"location_id": ""}, {"location_id": "location_id must not be empty: a string of 1 to 36 characters."}),
        ({"location_id": None}, {"location_id": "location_id must be a string of 1 to 36 characters."}),
        ({"expands": None}, {"expands": "expands must be a string of at most 512 characters."}),
        ({"expands": "a,,b"}, {"expands": EXPANDS_FAULT}),
        ({"expands": ",".join("abcdefghijklmnopq")}, {"expands": EXPANDS_FAULT}),
        ({"format": "xml"}, {"format": "format must be api-default."}),
        ({"strict_order": "on"}, {"strict_order": "strict_order must be off or release or hold."}),
        ({"rate_limit": 0}, {"rate_limit": "rate_limit must be a whole number from 1 to 10000 or null."}),
        (
            {"product_transaction_id": ""},
            {"product_transaction_id": "product_transaction_id must not be empty: a string or null."},
        ),
        (
            {"resource": "transaction"},
            {"product_transaction_id": "product_transaction_id is required for the resource transaction."},
        ),
        (
            {"resource": "transactionbatch", "product_transaction_id": None},
            {"product_transaction_id": "product_transaction_id is required for the resource transactionbatch."},
        ),
        (
            {"basic_auth_password": "secret"},
            {"basic_auth_password": "basic_auth_password needs a basic_auth_username: set both, or neither."},
        ),
        (
            {"basic_auth_username": "a:b"},
            {"basic_auth_username": "basic_auth_username must not contain a colon: HTTP Basic ends the name there."},
        ),
    ],
)
def test_a_breach_is_told_with_the_field_that_has_it(raw: dict[str, object], errors: dict[str, str]) -> None:
    """Each message begins with its field and says what is accepted."""
    assert faults({**LEAST, **raw}) == {name: [message] for name, message in errors.items()}


def test_all_breaches_are_told_at_once_and_unknown_fields_are_breaches() -> None:
    """One answer names everything that is wrong, what is missing too, and the fields that there are."""
    errors = faults({"id": "x", "url": "nope", "number_of_attempts": 0, "on_create": "maybe"})
    assert list(errors) == ["id", "location_id", "resource", "url", "on_create", "number_of_attempts"]
    assert errors["location_id"] == ["location_id is required."]
    assert errors["url"] == ["url must be an absolute http or https URL."]
    assert errors["id"] == [f"id is not a field that can be set. Accepted: {', '.join(FIELDS)}."]
    assert "secret" not in str(faults({**LEAST, "basic_auth_password": "secret"}))


def test_only_who_may_see_all_locations_may_leave_it_out() -> None:
    """A config without a location takes the caller's word for it, and is asked for by null, never by omission."""
    assert create({**LEAST, "location_id": None}, any_location=True)["location_id"] is None
    with pytest.raises(InvalidConfigError, match="location_id is required"):
        create({"resource": "contact", "url": "http://a/"}, any_location=True)


def test_an_edit_returns_what_it_names_and_nothing_else() -> None:
    """Partial: no default overwrites what is stored, and nothing is required."""
    assert validate({"number_of_attempts": "2"}, min_attempt_interval=300, current=config()) == {
        "number_of_attempts": 2
    }
    low = config(attempt_interval=5)
    assert validate({"expands": "tags"}, min_attempt_interval=300, current=low) == {"expands": "tags"}


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ({"resource": "transaction"}, "product_transaction_id"),
        ({"basic_auth_username": None}, "basic_auth_password"),
        ({"location_id": None}, "location_id"),
    ],
)
def test_an_edit_is_judged_by_what_results(raw: dict[str, object], name: str) -> None:
    """Fields that depend on one another are judged as they will stand together."""
    assert list(faults(raw, config())) == [name]


def test_an_edit_may_count_on_what_is_stored() -> None:
    """What the stored config has already need not be given again."""
    merchant = config(product_transaction_id="p")
    accepted: list[dict[str, object]] = [
        {"resource": "transaction"}, {"basic_auth_password": "new"}, {"basic_auth_password": None},
    ]  # fmt: skip
    for raw in accepted:
        assert validate(raw, min_attempt_interval=300, current=merchant) == raw
    assert list(faults({"product_transaction_id": None}, config(resource="transaction", product_transaction_id="p")))


@pytest.mark.parametrize(
    "url",
    [
        "http://a", "HTTPS://A.Example:8443/p?q=1&q=2", "http://127.0.0.1:1/", "http://[::1]:65535/x", "http://a_b.c./",
        "http://a?x", "https://xn--bcher-kva.example/%zz?a=b%20c&d=+e;f", 'http://a/"<>\\^`{|}', "http://a/?u=http://b@c:d/",
        "http://a/..//./b?", "http://" + "a" * 63 + ".b/", "http://a/" + "x" * 503,
    ],
)  # fmt: skip
def test_urls_that_are_accepted(url: str) -> None:
    """What is accepted is stored as it was written."""
    assert create({**LEAST, "url": url})["url"] == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "must not be empty: a string of 1 to 512 characters."),
        ("/receiver", "must be an absolute http or https URL."),
        ("ftp://a/", "must be an absolute http or https URL."),
        ("javascript:alert(1)", "must be an absolute http or https URL."),
        ("http:///x", "must be an absolute http or https URL."),
        ("http:/a/", "must be an absolute http or https URL."),
        ("http://a/ b", "must be printable ASCII without spaces"),
        ("http://a/\r\nX-Header: 1", "must be printable ASCII without spaces"),
        ("http://bücher.example/", "must be printable ASCII without spaces"),
        (" http://a/", "must be printable ASCII without spaces"),
        ("http://a/#top", "must not have a fragment"),
        ("http://user:password@a/", "must not contain a user or password: use basic_auth_username"),
        ("http://good.example\\@evil.example/", "must not contain a user or password"),
        ("http://a\\b/", "must have a valid host"),
        ("http://:80/", "must have a valid host"),
        ("http://a..b/", "must have a valid host"),
        ("http://-a/", "must have a valid host"),
        ("http://%61/", "must have a valid host"),
        ("http://[::g]/", "must have a valid host"),
        ("http://[fe80::1%25eth0]/", "must have a valid host"),
        ("http://[::1]x/", "must have a valid host"),
        ("http://127.1/", "must have a valid host"),
        ("http://2130706433/", "must have a valid host"),
        ("http://0x7f.0.0.0x1/", "must have a valid host"),
        ("http://127.0.0.01/", "must have a valid host"),
        ("http://" + "a" * 64 + "/", "must have a valid host"),
        ("http://a:/", "must have a port from 1 to 65535"),
        ("http://a:0/", "must have a port from 1 to 65535"),
        ("http://a:65536/", "must have a port from 1 to 65535"),
        ("http://a:000080/", "must have a port from 1 to 65535"),
        ("http://a:+8/", "must have a valid host"),
        ("http://a/" + "x" * 504, "must have at most 512 characters, and has 513."),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    """What the client would dial differently, or can not dial at all, is refused with its reason."""
    [told] = faults({**LEAST, "url": url})["url"]
    assert told.startswith(f"url {message}")


@settings(max_examples=500, deadline=None)
@given(
    st.builds(
        "{}://{}{}{}".format, st.sampled_from(["http", "https", "HTTP"]), AUTHORITIES, st.sampled_from(["/", "?", ""]),
        TARGETS,
    )
)  # fmt: skip
@example("http://[::1]:8080/a/../b?x=[1]&y=%zz%2F+;'\"\\")
@example("http://a/[/]")
@example("http://A.b:080?/@:")
@example("http://a//b//?&&")
def test_what_is_accepted_is_dialled_unchanged(url: str) -> None:
    """The client's own parser finds the host, the port and the target that the rules have read, to the letter."""
    try:
        create({**LEAST, "url": url})
    except InvalidConfigError:
        return
    dialled = URL(url, encoded=True)
    authority, mark, target = _split(url)
    read = urllib.parse.urlsplit(f"//{authority}")
    assert dialled.scheme == url.partition(":")[0].lower()
    assert (dialled.raw_host or "").lower() == read.hostname
    assert dialled.port == (read.port or {"http": 80, "https": 443}[dialled.scheme])
    assert (dialled.raw_user, dialled.raw_password, dialled.raw_fragment) == (None, None, "")
    # A client must send a path; and an empty query is the same bytes as none.
    expected = {"/": f"/{target}", "?": f"/?{target}", "": "/"}[mark]
    assert dialled.raw_path_qs == (expected.removesuffix("?") if expected.count("?") == 1 else expected)


@settings(max_examples=1000, deadline=None)
@given(
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["http://", "https://", "HTTP://", "http:/", "ftp://"]),
        st.one_of(
            AUTHORITIES,
            st.ip_addresses().map(str),
            st.ip_addresses(v=6).map("[{}]".format),
            st.text(":0af1.", max_size=20).map("[{}]".format),
            st.lists(st.text("aZ0x_-", max_size=4), max_size=4).map(".".join),
        ),
        st.sampled_from(["/", "?", "", "\n"]),
        TARGETS,
    )
)
@example("http://" + "a." * 127)
@example("http://" + "a." * 126 + "b")
@example("http://[1:2:3:4:5:6:7::]")
@example("http://[1::3:4:5:6:7:8]")
@example("http://[1:2:3:4:5:6:1.2.3.4]")
@example("http://[::1.2.3.04]")
@example("http://[1:2:3:4:5::1.2.3.4]")
@example("http://a.0x1f.")
@example("http://a:65535")
@example("http://a:00000")
def test_the_pattern_of_a_url_says_what_the_rules_say(url: str) -> None:
    """Who checks a URL by the described pattern is never refused, nor kept from one that would be accepted."""
    fits = re.search(URL_PATTERN.removesuffix("$") + r"\Z", url) is not None and len(url) <= 512
    try:
        create({**LEAST, "url": url})
    except InvalidConfigError:
        assert not fits
    else:
        assert fits


@settings(max_examples=100, deadline=None)
@given(st.from_regex(URL_PATTERN.removesuffix("$") + r"\Z").filter(lambda url: len(url) <= 512))
def test_what_fits_the_pattern_of_a_url_is_accepted(url: str) -> None:
    """Also for what no one thought of."""
    assert create({**LEAST, "url": url})["url"] == url


def _split(url: str) -> tuple[str, str, str]:
    rest = url.partition("://")[2]
    end = min((rest.index(mark) for mark in "/?" if mark in rest), default=len(rest))
    return rest[:end], rest[end : end + 1], rest[end + 1 :]


def test_the_document_has_the_contracts_form_and_no_secret() -> None:
    """Booleans are the strings "1" and "0", times whole epoch seconds; basic auth does not appear."""
    document = to_document(config(on_delete=False, paused_at=datetime.now(UTC)))
    assert document == {
        "id": "00000000-0000-0000-0000-000000000007", "location_id": "23948sdnfia1129i9asf92", "resource": "contact",
        "product_transaction_id": None, "on_create": "1", "on_update": "1", "on_delete": "0",
        "url": "https://a.example/r", "is_active": "1", "paused": "1", "format": "api-default",
        "number_of_attempts": 1, "attempt_interval": 300, "expands": "", "backoff": "fixed",
        "backoff_limit": 86_400, "strict_order": "off", "rate_limit": None, "signed": "1",
            "circuit_opened_ts": None,
        "exhausted_ts": None, "disabled_ts": None, "disabled_reason": None, "created_ts": 1539268970,
        "modified_ts": 1539268970,
    }  # fmt: skip
