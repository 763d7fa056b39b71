"""/v2/postbackconfigs/{id}/secret: made and rotated secrets are told once, and the config says only that it signs."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet
from standardwebhooks import Webhook

from outbox.settings import Settings
from tests.apis import Client, new_user, serving
from tests.tried import add_config

PATH = "/v2/postbackconfigs"


@pytest.fixture
async def api(db: str) -> AsyncIterator[Client]:
    async with serving(Settings(dsn=db, secret_key=(Fernet.generate_key().decode(),))) as client:
        client.session.headers.update(await new_user(db, "L"))
        yield client


async def rotate(api: Client, at: str, **fields: object) -> tuple[int, dict[str, Any]]:
    answer = await api.post(f"{at}/secret/rotate", json={"secret": fields})
    return answer.status, await answer.json()


async def test_a_secret_is_made_rotated_and_removed(api: Client, conn: psycopg.Connection) -> None:
    """Each is told once, and kept by no cache; the config says whether it signs, and only where it does."""
    at = f"{PATH}/{add_config(conn)}"
    before = (await (await api.get(at)).json())["postbackconfig"]
    assert "signed" not in before
    made = await api.post(f"{at}/secret")
    first = (await made.json())["secret"]
    assert (made.status, made.headers["Cache-Control"]) == (201, "no-store")
    Webhook(first).sign("id", datetime.now(UTC), "body")
    status, second = await rotate(api, at, overlap=0)
    assert status == 201
    assert second.keys() == {"secret"}
    assert second["secret"] != first
    after = await (await api.get(at)).json()
    assert after["postbackconfig"] == before | {
        "signed": "1", "modified_ts": after["postbackconfig"]["modified_ts"],
    }  # fmt: skip
    # What was read may be sent back; signing is switched by no field.
    assert (await api.put(at, json={"postbackconfig": {"signed": "1"}})).status == 200
    assert (await api.put(at, json={"postbackconfig": {"signed": "0"}})).status == 422
    for _ in range(2):
        gone = await api.delete(f"{at}/secret")
        assert (gone.status, await gone.read()) == (204, b"")
    assert "signed" not in (await (await api.get(at)).json())["postbackconfig"]


async def test_what_makes_no_sense_is_refused(api: Client, conn: psycopg.Connection) -> None:
    """A second first secret, a rotation of none, a sixth: 409. Another field or time: 422."""
    at = f"{PATH}/{add_config(conn)}"
    status, told = await rotate(api, at)
    assert (status, told["errors"].keys()) == (409, {"secret"})
    assert (await api.post(f"{at}/secret")).status == 201
    assert (await api.post(f"{at}/secret")).status == 409
    for overlap in (-1, 2_592_001, True, "60", 1.5, None):
        status, told = await rotate(api, at, overlap=overlap)
        assert (status, told["errors"].keys()) == (422, {"overlap"})
    assert (await rotate(api, at, secret="whsec_mine"))[1]["errors"].keys() == {"secret"}
    assert [(await rotate(api, at))[0] for _ in range(5)] == [201] * 4 + [409]
    assert (await api.delete(at)).status == 204
    assert (await api.post(f"{at}/secret")).status == (await rotate(api, at))[0] == 409


async def test_without_a_key_no_secret_is_made(db: str, conn: psycopg.Connection) -> None:
    """It could only be stored in clear."""
    at = f"{PATH}/{add_config(conn)}"
    async with serving(Settings(dsn=db)) as api:
        api.session.headers.update(await new_user(db, "L"))
        refused = await api.post(f"{at}/secret")
        assert (refused.status, "OUTBOX_SECRET_KEY" in await refused.text()) == (422, True)
    assert conn.execute("select signing_secrets from outbox.postback_configs").fetchall() == [(None,)]


async def test_a_secret_that_no_key_reads_is_told_and_nothing_is_changed(
    api: Client, db: str, conn: psycopg.Connection
) -> None:
    """Not as null, which somebody might send back; and the secret that receivers know is not replaced."""
    at = f"{PATH}/{add_config(conn)}"
    changed = await api.put(at, json={"postbackconfig": {"basic_auth_username": "Ada", "basic_auth_password": "x"}})
    assert changed.status == 200
    assert (await api.post(f"{at}/secret")).status == 201
    stored = "select signing_secrets, basic_auth_username, revision from outbox.postback_configs"
    before = conn.execute(stored).fetchone()
    async with serving(Settings(dsn=db, secret_key=(Fernet.generate_key().decode(),))) as other:
        other.session.headers.update(api.session.headers)
        for asking in (
            other.get(PATH, params={"expand": "basic_auth_username"}),
            other.get(at, params={"expand": "basic_auth_username"}),
            other.post(f"{at}/secret/rotate", json={"secret": {}}),
        ):
            answer = await asking
            assert (answer.status, "OUTBOX_SECRET_KEY" in await answer.text()) == (500, True)
        assert (await other.get(PATH)).status == 200
    assert conn.execute(stored).fetchone() == before
