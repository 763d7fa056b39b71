"""Configs and what they are owed, written straight into the tables: capture and routing would take long for millions.

Config number n watches location-n, so each event belongs to one config. The debt is due, and its ids are older than
those of what is captured afterwards.
"""

import json

import psycopg

from outbox.demo.contacts import COLUMNS

BATCH = 250_000
ROUTED = 500
"""How many are due at the same moment: as many as a route makes."""

_CONFIGS = """
insert into outbox.postback_configs (location_id, resource, url)
select 'location-' || n, %(resource)s, %(url)s from generate_series(%(first)s::int, %(last)s::int) n
"""
_OWED = """
with made as materialized (
    select (
            lpad(to_hex(seq >> 12), 12, '0') || '8' || lpad(to_hex(seq & 4095), 3, '0')
            || substr(gen_random_uuid()::text, 20)
        )::uuid as id,
        'location-' || seq %% %(configs)s as location_id,
        now() - (%(end)s - seq) / %(routed)s * interval '10 ms' as due_at
    from generate_series(%(first)s::bigint, %(last)s::bigint) seq
), kept as (
    insert into outbox.events (id, created_at, type, resource, resource_id, location_id, data)
    select m.id, now(), 'CREATE', %(resource)s, m.id::text, m.location_id, %(data)s from made as m
)
insert into outbox.deliveries (event_id, config_id, event_created_at, due_at)
select m.id, c.id, now(), m.due_at from made as m
join outbox.postback_configs as c on c.location_id = m.location_id and c.resource = %(resource)s
"""
CAPTURED = """
insert into public.contacts (location_id, last_name, first_name, email, address, city)
select 'location-' || i %% %(configs)s, 'Jones ' || i, 'Zoë', 'zoe' || i || '@example.com', '1 Main St & Co', 'Örebro'
from generate_series(1, %(count)s) i
"""

_RECORD = json.dumps(
    dict.fromkeys(COLUMNS)
    | {"id": "0" * 24, "location_id": "location-1", "last_name": "Jones 1", "first_name": "Zoë", "city": "Örebro"}
    | {"email": "zoe1@example.com", "address": "1 Main St & Co", "email_trx_receipt": False, "created_ts": 1}
    | {"modified_ts": 1, "header_message_type_id": 0},
    ensure_ascii=False, separators=(",", ":"),
)  # fmt: skip


def add_configs(conn: psycopg.Connection, url: str, count: int, *, first: int = 0, resource: str = "contact") -> None:
    """Subscribe the URL to `count` locations, from number `first` on."""
    conn.execute(_CONFIGS.encode(), {"url": url, "first": first, "last": first + count - 1, "resource": resource})
    conn.execute("analyze outbox.postback_configs")


def owe(conn: psycopg.Connection, pending: int, *, configs: int, resource: str = "contact") -> None:
    """Let the configs below number `configs` owe `pending` more, all together."""
    conn.execute("select outbox.make_partitions()")
    row = conn.execute(
        "select nextval(pg_get_serial_sequence('outbox.outbox', 'seq')), "
        "setval(pg_get_serial_sequence('outbox.outbox', 'seq'), "
        "currval(pg_get_serial_sequence('outbox.outbox', 'seq')) + %s)",
        [pending],
    ).fetchone()
    assert row is not None  # noqa: S101 - for the type checker
    begin, end = int(row[0]), int(row[0]) + pending
    asked = {"configs": configs, "resource": resource, "data": _RECORD, "routed": ROUTED, "end": end}
    for first in range(begin, end, BATCH):
        conn.execute(_OWED.encode(), asked | {"first": first, "last": min(first + BATCH, end) - 1})
    if pending >= BATCH // 10:
        conn.execute("analyze outbox.deliveries")
        conn.execute("analyze outbox.events")


def capture(conn: psycopg.Connection, count: int, *, configs: int) -> None:
    """Create contacts in the first `configs` locations in one statement; each is captured."""
    conn.execute(CAPTURED.encode(), {"count": count, "configs": configs})
