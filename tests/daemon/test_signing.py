"""Requests are signed as the receiver's library expects, on each try, over a rotation, and only where asked for."""

import asyncio
from uuid import UUID

import psycopg
from standardwebhooks import Webhook, WebhookVerificationError

from outbox.postgres import signing
from outbox.secrets import SecretBox
from tests.daemons import add_config, make_due, owed, until_empty
from tests.receiver import Received, Receiver, Status

KEYS = ("0" * 43 + "=", "1" * 43 + "=")
BOX = SecretBox(KEYS)


def accepts(secret: str, request: Received) -> bool:
    """Tell whether a receiver with this secret accepts the request."""
    try:
        Webhook(secret).verify(request.body, dict(request.raw_headers), json_parse=False)
    except WebhookVerificationError:
        return False
    return True


async def make(db: str, config: UUID) -> str:
    async with await psycopg.AsyncConnection.connect(db) as conn:
        return await signing.make(conn, config, BOX)


async def rotate(db: str, config: UUID, overlap: int) -> str:
    async with await psycopg.AsyncConnection.connect(db) as conn:
        return await signing.rotate(conn, config, BOX, overlap=overlap)


async def test_each_try_is_signed_anew(contacts: psycopg.Connection, db: str) -> None:
    """The body of a retry is another one; both are accepted, each with its own signature. Others are not signed."""
    with Receiver() as receiver:
        receiver.answer("/signed", Status(500), Status(200))
        signed = add_config(contacts, receiver.url_for("/signed"), number_of_attempts=2)
        add_config(contacts, receiver.url_for("/plain"))
        secret = await make(db, signed)
        contacts.execute("insert into contacts values (1, 'L', 'é & =')")
        await until_empty(db, secret_key=KEYS)
        make_due(contacts)
        await until_empty(db, secret_key=KEYS)
        assert owed(contacts) == []
        first, second = [each for each in receiver.requests if each.path == "/signed"]
        assert [dict(each.form)["number_of_attempts"] for each in (first, second)] == ["1", "2"]
        assert accepts(secret, first)
        assert accepts(secret, second)
        assert first.headers["webhook-signature"] != second.headers["webhook-signature"]
        [plain] = [each for each in receiver.requests if each.path == "/plain"]
        assert "webhook-signature" not in plain.headers


async def test_both_secrets_sign_until_the_overlap_ends(contacts: psycopg.Connection, db: str) -> None:
    """A running daemon follows a rotation: receivers with either secret accept it, later only those with the new."""
    with Receiver() as receiver:
        config = add_config(contacts, receiver.url)
        old = await make(db, config)
        new = await rotate(db, config, 60)
        contacts.execute("insert into contacts values (1)")
        await until_empty(db, secret_key=KEYS)
        during = receiver.requests[-1]
        assert (accepts(old, during), accepts(new, during)) == (True, True)
        assert len(during.headers["webhook-signature"].split(" ")) == 2
        newest = await rotate(db, config, 0)
        contacts.execute("insert into contacts values (2)")
        await until_empty(db, secret_key=KEYS)
        after = receiver.requests[-1]
        assert [accepts(each, after) for each in (old, new, newest)] == [False, False, True]


async def test_what_can_not_be_opened_uses_up_no_try(contacts: psycopg.Connection, db: str) -> None:
    """Without the key, or with something else in the column, nothing is sent unsigned; with the key it goes out."""
    with Receiver() as receiver:
        config = add_config(contacts, receiver.url)
        nonsense = add_config(contacts, receiver.url, signing_secrets=BOX.seal("no list"))
        secret = await make(db, config)
        contacts.execute("insert into contacts values (1)")
        assert await until_empty(db, secret_key=KEYS[1:]) == 0
        assert owed(contacts) == [("pending", 0, False)] * 2
        assert receiver.requests == []
        contacts.execute("delete from outbox.deliveries where config_id = %s", [nonsense])
        make_due(contacts)
        await until_empty(db, secret_key=KEYS)
        assert [accepts(secret, each) for each in receiver.requests] == [True]


async def test_a_config_signs_no_more_once_its_secret_is_removed(contacts: psycopg.Connection, db: str) -> None:
    """It is sent without the header, and nothing of the secret is stored."""
    with Receiver() as receiver:
        config = add_config(contacts, receiver.url)
        await make(db, config)
        async with await psycopg.AsyncConnection.connect(db) as other:
            assert await signing.remove(other, config)
            assert not await signing.remove(other, config)
        assert contacts.execute("select signing_secrets from outbox.postback_configs").fetchall() == [(None,)]
        contacts.execute("insert into contacts values (1)")
        await until_empty(db)
        assert "webhook-signature" not in receiver.requests[-1].headers


async def test_only_sealed_secrets_are_stored(contacts: psycopg.Connection, db: str) -> None:
    """No row holds a secret in clear, and two rotations at once keep each other's."""
    config = add_config(contacts, "http://127.0.0.1:9/")
    old = await make(db, config)
    async with (
        await psycopg.AsyncConnection.connect(db) as one,
        await psycopg.AsyncConnection.connect(db) as two,
    ):
        async with one.transaction():
            first = await signing.rotate(one, config, BOX, overlap=60)
            waiting = asyncio.create_task(signing.rotate(two, config, BOX, overlap=60))
            while not contacts.execute(
                "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
            ).fetchall():
                assert not waiting.done()
                await asyncio.sleep(0.01)
        second = await waiting
    row = contacts.execute("select c::text, signing_secrets from outbox.postback_configs as c").fetchone()
    assert row is not None
    assert "whsec" not in row[0]
    kept = BOX.open(row[1])
    assert [kept.index(each) for each in (second, first, old)] == sorted(kept.index(e) for e in (second, first, old))
    assert len({second, first, old}) == 3
