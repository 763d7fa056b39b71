"""Configs are stored as validated, kept right by the table itself, and what they owed goes with them."""

from dataclasses import replace
from uuid import UUID

import psycopg
import pytest
from cryptography.fernet import Fernet

from outbox.core.config_rules import Value, validate
from outbox.core.model import PostbackConfig
from outbox.errors import OutboxError, UsageError
from outbox.postgres import configs, signing
from outbox.secrets import SecretBox

NOWHERE = UUID(int=0)
SECRETS = SecretBox([Fernet.generate_key().decode()])


async def add(conn: psycopg.AsyncConnection, **fields: object) -> PostbackConfig:
    raw = {"location_id": "L", "resource": "contact", "url": "http://127.0.0.1/", **fields}
    return await configs.add(conn, validate(raw, min_attempt_interval=300, any_location=True), SECRETS)


async def test_what_is_added_is_what_is_read(aconn: psycopg.AsyncConnection) -> None:
    """Every field comes back as it was validated, by id and in the list."""
    url = "https://a.example/%zz?b=%20c&d=+"
    added = await add(aconn, url=url, on_update=False, number_of_attempts=5, attempt_interval=86_400, expands="a,b")
    assert (added.url, added.on_create, added.on_update, added.on_delete) == (url, True, False, True)
    assert (added.number_of_attempts, added.attempt_interval, added.expands) == (5, 86_400, "a,b")
    assert (added.revision, added.paused_at, added.deleted_at) == (1, None, None)
    assert await configs.get(aconn, added.id) == added
    assert await configs.load(aconn, [NOWHERE, added.id]) == await configs.find(aconn, limit=9) == [added]


async def test_basic_auth_is_sealed_before_it_is_stored(
    aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """No row holds the clear text, an older key still opens it, and without a key nothing is stored."""
    added = await add(aconn, basic_auth_username="user", basic_auth_password="pässword")
    row = conn.execute("select c::text from outbox.postback_configs as c").fetchone()
    assert row is not None
    assert "user" not in row[0]
    assert "pässword" not in row[0] + repr(added)
    assert added.basic_auth_password is not None
    assert SECRETS.open(added.basic_auth_password) == "pässword"
    with pytest.raises(UsageError, match="OUTBOX_SECRET_KEY is not set"):
        await configs.edit(aconn, added.id, {"basic_auth_username": "x"}, SecretBox([]))
    cleared = await configs.edit(
        aconn, added.id, {"basic_auth_username": None, "basic_auth_password": None}, SecretBox([])
    )
    assert (cleared.basic_auth_username, cleared.basic_auth_password) == (None, None)


async def test_find_filters_and_limits(aconn: psycopg.AsyncConnection) -> None:
    """Oldest first; each filter narrows, None lets all through."""
    first = await add(aconn)
    second = await add(aconn, location_id="M", is_active=False)
    third = await add(aconn, resource="accountvault", location_id=None)
    assert await configs.find(aconn, limit=9) == [first, second, third]
    assert await configs.find(aconn, limit=2) == [first, second]
    assert await configs.find(aconn, location_id="M", limit=9) == [second]
    assert await configs.find(aconn, resource="accountvault", limit=9) == [third]
    assert await configs.find(aconn, is_active=True, limit=9) == [first, third]
    assert await configs.find(aconn, location_id="M", is_active=True, limit=9) == []


async def test_an_edit_changes_what_it_names_and_counts(aconn: psycopg.AsyncConnection) -> None:
    """The revision tells daemons that what they remember is old; nothing else is touched."""
    added = await add(aconn, expands="tags")
    changes: dict[str, Value] = {"url": "http://b/", "number_of_attempts": 3, "is_active": False}
    edited = await configs.edit(aconn, added.id, changes, SECRETS)
    assert edited == replace(
        added, url="http://b/", number_of_attempts=3, is_active=False, revision=2, modified_at=edited.modified_at
    )
    assert edited.modified_at > added.modified_at
    assert await configs.get(aconn, added.id) == edited


async def test_pause_and_resume(aconn: psycopg.AsyncConnection) -> None:
    """A pause keeps the time since when it is, and has nothing to do with is_active."""
    added = await add(aconn)
    paused = await configs.pause(aconn, added.id)
    assert paused.paused_at is not None
    assert paused.is_active
    again = await configs.pause(aconn, added.id)
    assert again.paused_at == paused.paused_at
    resumed = await configs.resume(aconn, added.id)
    assert resumed.paused_at is None
    assert resumed.revision > again.revision > added.revision


async def test_unknown_and_deleted_configs_are_told_apart(aconn: psycopg.AsyncConnection) -> None:
    """Each way to one config says whether it never was or was deleted."""
    gone = await add(aconn)
    await configs.remove(aconn, gone.id)
    for config_id, kind, message in [
        (NOWHERE, configs.UnknownConfigError, "There is no config 0000"),
        (gone.id, configs.DeletedConfigError, f"{gone.id} was deleted at "),
    ]:
        for asked in [
            configs.get(aconn, config_id),
            configs.edit(aconn, config_id, {"url": "http://b/"}, SECRETS),
            configs.pause(aconn, config_id),
            configs.resume(aconn, config_id),
        ]:
            with pytest.raises(OutboxError, match=message) as caught:
                await asked
            assert type(caught.value) is kind
    with pytest.raises(configs.UnknownConfigError):
        await configs.remove(aconn, NOWHERE)


async def test_removing_forgets_what_is_owed_in_batches_and_may_be_repeated(
    aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """Pending and dead deliveries of this config go, another's stay; the row stays and answers "deleted"."""
    gone, kept = await add(aconn), await add(aconn)
    owe = """
        insert into outbox.deliveries (event_id, config_id, event_created_at, state, died_at)
        select gen_random_uuid(), %s, now(), case i %% 2 when 0 then 'dead' else 'pending' end,
            case i %% 2 when 0 then now() end
        from generate_series(1, 10) as i
    """
    for config_id in (gone.id, kept.id):
        conn.execute(owe.encode(), [config_id])
    assert await configs.remove(aconn, gone.id, batch=3) == 10
    [deleted] = await configs.load(aconn, [gone.id])
    assert deleted.deleted_at is not None
    assert await configs.find(aconn, limit=9) == [kept]
    assert conn.execute("select config_id, count(*) from outbox.deliveries group by 1").fetchall() == [(kept.id, 10)]
    conn.execute(owe.encode(), [gone.id])
    assert await configs.remove(aconn, gone.id, batch=3) == 10
    assert await configs.load(aconn, [gone.id]) == [deleted]


async def test_a_deleted_config_keeps_no_secret(aconn: psycopg.AsyncConnection) -> None:
    """Its row stays; what was sealed in it is gone."""
    gone = await add(aconn, basic_auth_username="me", basic_auth_password="word")
    await signing.make(aconn, gone.id, SECRETS)
    await configs.remove(aconn, gone.id)
    [deleted] = await configs.load(aconn, [gone.id])
    assert (deleted.basic_auth_username, deleted.basic_auth_password, deleted.signing_secrets) == (None, None, None)


async def test_each_batch_is_a_transaction_of_its_own(
    aconn: psycopg.AsyncConnection, conn: psycopg.Connection, db: str
) -> None:
    """What one batch deleted stays deleted when a later one fails, and a repeated removal does the rest."""
    gone = await add(aconn)
    conn.execute(
        "insert into outbox.deliveries (event_id, config_id, event_created_at) "
        "select ('00000000-0000-0000-0000-00000000000' || i)::uuid, %s, now() from generate_series(1, 7) as i",
        [gone.id],
    )
    with psycopg.connect(db) as other:
        other.execute("select from outbox.deliveries where event_id::text like '%7' for update")
        await aconn.execute("set lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await configs.remove(aconn, gone.id, batch=3)
    left = conn.execute("select count(*) from outbox.deliveries").fetchone()
    assert left is not None
    assert left[0] < 7
    assert await configs.remove(aconn, gone.id) == left[0]


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"location_id": ""}, "location_id"),
        ({"location_id": "x" * 37}, "location_id"),
        ({"resource": ""}, "resource"),
        ({"resource": "x" * 129}, "resource"),
        ({"product_transaction_id": ""}, "product_transaction_id"),
        ({"resource": "transaction"}, "product_transaction_id"),
        ({"resource": "transactionbatch"}, "product_transaction_id"),
        ({"url": "/receiver"}, "url"),
        ({"url": "ftp://a/"}, "url"),
        ({"url": "http:///a"}, "url"),
        ({"url": "http:// a"}, "url"),
        ({"url": "http://a/" + "x" * 504}, "url"),
        ({"number_of_attempts": 0}, "number_of_attempts"),
        ({"number_of_attempts": 6}, "number_of_attempts"),
        ({"attempt_interval": 0}, "attempt_interval"),
        ({"attempt_interval": 86_401}, "attempt_interval"),
        ({"basic_auth_username": "clear"}, "basic_auth_encrypted"),
        ({"basic_auth_username": "gAAAAAx", "basic_auth_password": "clear"}, "basic_auth_encrypted"),
        ({"basic_auth_password": "gAAAAAx"}, "basic_auth_whole"),
        ({"signing_secrets": "whsec_clear"}, "signing_secrets_encrypted"),
        ({"expands": "x" * 513}, "expands"),
        ({"format": "xml"}, "format"),
    ],
)
def test_the_table_itself_refuses_what_breaks_a_rule(
    conn: psycopg.Connection, fields: dict[str, object], constraint: str
) -> None:
    """Each rule is a CHECK with a name, so that no other program can store what the commands refuse."""
    fields = {"location_id": "L", "resource": "contact", "url": "http://a/", **fields}
    names, marks = ", ".join(fields), ", ".join(["%s"] * len(fields))
    insert = f"insert into outbox.postback_configs ({names}) values ({marks})"  # noqa: S608 - our own names
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        conn.execute(insert.encode(), list(fields.values()))
    assert caught.value.diag.constraint_name == f"postback_configs_{constraint}"


@pytest.mark.parametrize(
    "fields",
    [
        {"location_id": None},
        {"location_id": "é" * 36, "resource": "x" * 128},
        {"resource": "transaction", "product_transaction_id": "p"},
        {"url": "HTTPS://[::1]/" + "x" * 498, "expands": "x" * 512},
        {"number_of_attempts": 5, "attempt_interval": 86_400},
        {"basic_auth_username": "u" * 512, "basic_auth_password": "p" * 512},
        {"basic_auth_username": "u"},
    ],
)
async def test_the_table_takes_all_that_the_rules_accept(
    aconn: psycopg.AsyncConnection, fields: dict[str, object]
) -> None:
    """The limits of the rules are limits of the table as well, and no CHECK is stricter."""
    assert (await add(aconn, **fields)).revision == 1
