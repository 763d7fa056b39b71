"""Targets: the configs of what is in hand, in the revision of the claim or a later one."""

import datetime as dt

import psycopg
import pytest

from outbox.core.model import ConfigId, Delivery
from outbox.daemon.targets import Targets
from outbox.postgres import configs
from outbox.postgres.pool import connected
from outbox.secrets import SecretBox
from tests.daemons import add_config


async def test_a_config_that_was_restored_is_loaded_though_its_revision_is_lower(
    conn: psycopg.Connection, db: str
) -> None:
    """Else what it is owed would be claimed and given back, again and again: it was paused in what is gone."""
    aconn = await psycopg.AsyncConnection.connect(db, autocommit=True)
    config = add_config(conn, "http://127.0.0.1:9/")
    await configs.pause(aconn, config)
    config_id = ConfigId(str(config))
    targets = Targets(SecretBox(()))
    await targets.reload(aconn, [config_id])
    restored = conn.execute(
        "update outbox.postback_configs set paused_at = null, revision = 1 returning revision, created_at"
    ).fetchone()
    assert restored is not None
    delivery = Delivery("1", config_id, 1, 0, restored[1], restored[0], "CREATE", "contact", "{}")
    await targets.refresh(aconn, [delivery])
    assert not _sends(targets, delivery)
    targets.doubt()
    await targets.refresh(aconn, [delivery])
    assert _sends(targets, delivery)
    await aconn.close()


def _sends(targets: Targets, delivery: Delivery) -> bool:
    target = targets.get(delivery.config_id)
    assert target is not None
    return target.sends


async def test_what_is_used_is_not_forgotten(
    conn: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many others come: what is in hand would be given back, and claimed again."""
    monkeypatch.setattr("outbox.daemon.targets._REMEMBERED", 3)
    config_ids = [ConfigId(str(add_config(conn, "http://127.0.0.1:9/"))) for _ in range(6)]
    now = dt.datetime.now(dt.UTC)
    deliveries = [Delivery("1", each, 1, 0, now, 1, "CREATE", "contact", "{}") for each in config_ids]
    targets = Targets(SecretBox(()))
    async with connected(db, "test") as aconn:
        await targets.refresh(aconn, deliveries[:2])
        for other in deliveries[2:]:
            await targets.refresh(aconn, [deliveries[0], other])  # known already, and claimed again
            await targets.reload(aconn, config_ids[1:2])  # in hand
            assert all(map(targets.get, [*config_ids[:2], other.config_id]))
        assert list(map(targets.get, config_ids[2:5])) == [None] * 3
        many = Targets(SecretBox(()), in_hand=6)
        await many.refresh(aconn, deliveries)
        assert all(map(many.get, config_ids))
