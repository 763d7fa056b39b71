"""Stored secrets go over to a new key: all of them, in batches, as often as one likes, and nothing else changes."""

import json

import psycopg
import pytest
from cryptography.fernet import Fernet

from outbox.errors import UsageError
from outbox.postgres import resealing
from outbox.postgres.resealing import Resealed
from outbox.secrets import SecretBox, SecretError
from tests.daemons import add_config
from tests.tried import outbox

OLD, NEW, LOST = (Fernet.generate_key().decode() for _ in range(3))
OLD_BOX, NEW_BOX = SecretBox([OLD]), SecretBox([NEW])
URL = "http://127.0.0.1:9/"
TOKENS = "select basic_auth_username, basic_auth_password, signing_secrets from outbox.postback_configs order by url"
REST = "select id, url, revision, modified_at, deleted_at from outbox.postback_configs order by url"


def store(conn: psycopg.Connection) -> None:
    """Store five secrets of three configs, one of them deleted and one without a password; and a config without any."""
    seal = OLD_BOX.seal
    add_config(
        conn, URL + "1", basic_auth_username=seal("u1"), basic_auth_password=seal("p1"), signing_secrets=seal("s1")
    )
    add_config(conn, URL + "2", basic_auth_username=seal("u2"))
    add_config(conn, URL + "3", signing_secrets=seal("s3"), deleted_at="now")
    add_config(conn, URL + "4")


def opened(conn: psycopg.Connection, box: SecretBox) -> list[list[str | None]]:
    return [[None if token is None else box.open(token) for token in row] for row in conn.execute(TOKENS).fetchall()]


@pytest.mark.parametrize("batch", [1, 2, 500])
async def test_all_are_sealed_anew_and_the_old_key_opens_none(db: str, conn: psycopg.Connection, batch: int) -> None:
    """A dry run changes nothing; the second run finds nothing to do; revision and times stay."""
    store(conn)
    clear, rest = opened(conn, OLD_BOX), conn.execute(REST).fetchall()
    box = SecretBox([NEW, OLD])
    async with await psycopg.AsyncConnection.connect(db, autocommit=True) as other:
        assert await resealing.reseal(other, box, dry_run=True, batch=batch) == Resealed(3, 5, 0)
        assert opened(conn, OLD_BOX) == clear
        assert await resealing.reseal(other, box, batch=batch) == Resealed(3, 5, 0)
        assert await resealing.reseal(other, box, batch=batch) == Resealed(3, 0, 5)
        with pytest.raises(UsageError, match="OUTBOX_SECRET_KEY is not set"):
            await resealing.reseal(other, SecretBox([]))
    assert opened(conn, NEW_BOX) == clear
    assert conn.execute(REST).fetchall() == rest
    with pytest.raises(SecretError):
        opened(conn, OLD_BOX)


async def test_what_was_interrupted_goes_on(db: str, conn: psycopg.Connection) -> None:
    """The batches before the interruption stay sealed anew; a run after it does the rest."""
    store(conn)
    clear = opened(conn, OLD_BOX)
    async with await psycopg.AsyncConnection.connect(db, autocommit=True) as other:
        last = conn.execute(
            "select max(id::text)::uuid from outbox.postback_configs where url not like '%4'"
        ).fetchone()
        assert last is not None
        with psycopg.connect(db) as holder:
            holder.execute("select from outbox.postback_configs where id = %s for update", last)
            await other.execute("set lock_timeout = '100ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await resealing.reseal(other, SecretBox([NEW, OLD]), batch=1)
        report = await resealing.reseal(other, SecretBox([NEW, OLD]), batch=1)
    assert report.current > 0
    assert (report.configs, report.secrets + report.current) == (3, 5)
    assert opened(conn, NEW_BOX) == clear


def test_the_command_says_what_it_did_and_what_it_could_not(
    db: str, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts for people and machines; a secret that no key reads is left and named, exit 1; no key at all is exit 2."""
    assert "OUTBOX_SECRET_KEY is not set" in outbox(db, "secrets", "rotate").stderr
    store(conn)
    made = outbox(db, "secrets", "make-key")
    assert SecretBox([made.stdout.strip()]).seal("x")
    monkeypatch.setenv("OUTBOX_SECRET_KEY", f"{NEW},{OLD}")
    told = outbox(db, "secrets", "rotate", "--dry-run").stdout.splitlines()
    assert [line.split()[-1] for line in told] == ["3", "5", "0", "changed."]
    lost = add_config(conn, URL + "5", signing_secrets=SecretBox([LOST]).seal("x"))
    done = outbox(db, "secrets", "rotate", "--json")
    assert (done.returncode, f"as they were: {lost}." in done.stderr) == (1, True)
    assert json.loads(done.stdout) == {
        "dry_run": False, "configs": 4, "resealed": 5, "current": 0, "unreadable": [str(lost)],
    }  # fmt: skip
