"""What keeps dead rows from being taken away: old transactions and their like, and a vacuum that does not come.

A queue is a table whose rows all die young. While somebody holds an old snapshot the dead ones stay, and each look
at the queue reads past them.
"""

from typing import Any

from psycopg import AsyncConnection

from outbox.core.finding import OK, PROBLEM, WARNING, Finding, Level, duration
from outbox.postgres.diagnosis.rows import rows

HELD_WARNING = 300.0
HELD_PROBLEM = 3600.0
"""Seconds that a transaction may be open."""
HELD_XIDS = 1_000_000
"""Transactions that may begin while a slot or a standby, whose time nobody knows, holds what they leave."""
_SHOWN = 5

# The vacuum of a table looks at the sessions of its own database, and at standbys that feed back. A session holds
# something by its snapshot or by its own writes: idle in transaction with neither, it holds nothing.
_SESSIONS = """
select a.pid, a.usename as role, a.application_name as application, coalesce(a.state, '') as state,
    coalesce(a.backend_type, '') as kind, a.xact_start as since,
    extract(epoch from clock_timestamp() - a.xact_start)::float8 as seconds,
    greatest(age(a.backend_xmin), age(a.backend_xid)) as xids
from pg_stat_activity as a
where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid <> pg_backend_pid()
    and (a.datname = current_database() or a.backend_type = 'walsender')
    and a.backend_type is distinct from 'autovacuum worker'
order by xids desc
"""
# Without this right the server hides other roles' times and states, and their transactions would look like none.
_SEES_ALL = """
select pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') as sees_all, quote_ident(current_user) as role
"""
_PREPARED = """
select p.gid, p.owner, p.prepared as since,
    extract(epoch from clock_timestamp() - p.prepared)::float8 as seconds
from pg_prepared_xacts as p where p.database = current_database()
order by p.prepared
"""
_SLOTS = """
select s.slot_name as name, quote_literal(s.slot_name) as quoted, s.active,
    age(s.xmin) as xids, age(s.catalog_xmin) as catalog_xids
from pg_replication_slots as s where s.xmin is not null or s.catalog_xmin is not null
order by greatest(age(s.xmin), age(s.catalog_xmin)) desc
"""


async def xmin(
    conn: AsyncConnection, *, warning: float = HELD_WARNING, problem: float = HELD_PROBLEM, xids: int = HELD_XIDS
) -> list[Finding]:
    """Who keeps dead rows from the vacuum. Times in seconds; `xids`: for what has no time."""
    found = []
    for row in await rows(conn, _SESSIONS):
        if row["kind"] == "walsender":
            if row["xids"] >= xids:
                found.append(_standby(row))
        elif row["seconds"] is None:
            if row["xids"] >= xids:
                found.append(_session(row, "a transaction", WARNING))
        elif row["seconds"] >= warning:
            level = PROBLEM if row["seconds"] >= problem else WARNING
            found.append(_session(row, f"a transaction open for {duration(row['seconds'])}", level))
    found += [
        Finding(
            "xmin", PROBLEM if row["seconds"] >= problem else WARNING,
            f"The prepared transaction {row['gid']} of role {row['owner']} is open for "
            f"{duration(row['seconds'])} (since {row['since']:%Y-%m-%d %H:%M:%S %Z}): dead rows stay.",
            "Ask whoever prepared it, then COMMIT PREPARED or ROLLBACK PREPARED with this name.",
        )
        for row in await rows(conn, _PREPARED)
        if row["seconds"] >= warning
    ]  # fmt: skip
    found = _shown(found)
    for row in await rows(conn, _SLOTS):
        found += _slot(row, xids)
    [right] = await rows(conn, _SEES_ALL)
    if not right["sees_all"]:
        found.append(
            Finding(
                "xmin", WARNING, f"How long others' transactions are open is hidden from role {right['role']}.",
                f"grant pg_read_all_stats to {right['role']};",
            )
        )  # fmt: skip
    return found or [Finding("xmin", OK, "No old transaction keeps dead rows from the vacuum.")]


def _session(row: dict[str, Any], what: str, level: Level) -> Finding:
    since = "" if row["since"] is None else f", since {row['since']:%Y-%m-%d %H:%M:%S %Z}"
    who = f"role {row['role']}, application {row['application'] or '-'}, {row['state'] or 'state hidden'}{since}"
    return Finding(
        "xmin", level, f"Backend {row['pid']} ({who}) holds {what}: dead rows stay.",
        f"If it is forgotten, pg_terminate_backend({row['pid']}) ends it. For the future: "
        "idle_in_transaction_session_timeout, and dumps from a standby.",
    )  # fmt: skip


def _standby(row: dict[str, Any]) -> Finding:
    return Finding(
        "xmin", WARNING,
        f"A standby (backend {row['pid']}, application {row['application'] or '-'}) feeds back a snapshot that is "
        f"{row['xids']} transactions old: dead rows stay.",
        "End the long query on the standby, or switch hot_standby_feedback off there.",
    )  # fmt: skip


def _slot(row: dict[str, Any], xids: int) -> list[Finding]:
    advice = f"If nobody will come back for it: select pg_drop_replication_slot({row['quoted']});"
    state = "in use" if row["active"] else "not in use"
    if row["xids"] is not None and row["xids"] >= xids:
        said = f"The replication slot {row['name']} ({state}) keeps the dead rows of {row['xids']} transactions."
        return [Finding("xmin", WARNING if row["active"] else PROBLEM, said, advice)]
    if row["catalog_xids"] is not None and row["catalog_xids"] >= xids and not row["active"]:
        said = (
            f"The replication slot {row['name']} ({state}) keeps the catalog's dead rows of {row['catalog_xids']} "
            "transactions, and the WAL since."
        )
        return [Finding("xmin", WARNING, said, advice)]
    return []


def _shown(found: list[Finding]) -> list[Finding]:
    rest = len(found) - _SHOWN
    more = [Finding("xmin", WARNING, f"And {rest} more old transactions.", "See pg_stat_activity.")] if rest > 0 else []
    return found[:_SHOWN] + more


DEAD_WARNING = 50_000
"""Dead rows of one table, ten times what autovacuum waits for."""

_DEAD_ROWS = """
select s.relname as name, s.n_live_tup as live, s.n_dead_tup as dead,
    extract(epoch from clock_timestamp() - greatest(s.last_autovacuum, s.last_vacuum))::float8 as vacuumed
from pg_stat_user_tables as s
where s.schemaname = 'outbox' and s.relname in ('outbox', 'deliveries')
order by s.relname desc
"""


async def dead_rows(conn: AsyncConnection, *, warning: int = DEAD_WARNING) -> list[Finding]:
    """How many dead rows the queue's tables carry, by the server's statistics."""
    tables = await rows(conn, _DEAD_ROWS)
    found = []
    for row in tables:
        if row["dead"] >= warning + row["live"] // 5:
            vacuumed = "never vacuumed" if row["vacuumed"] is None else f"vacuumed {duration(row['vacuumed'])} ago"
            found.append(
                Finding(
                    "dead rows", WARNING,
                    f"outbox.{row['name']} has {row['dead']} dead rows and {row['live']} live ones, {vacuumed}.",
                    f"First what xmin and autovacuum say, then: vacuum outbox.{row['name']};",
                )
            )  # fmt: skip
    counts = ", ".join(f"outbox.{row['name']} {row['dead']}" for row in tables)
    return found or [Finding("dead rows", OK, f"Few: {counts}.")]


_AUTOVACUUM = """
select current_setting('autovacuum') as autovacuum, current_setting('track_counts') as track_counts,
    current_setting('autovacuum_max_workers')::int as workers,
    case when pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') then (
        select count(*) from pg_stat_activity as a where a.backend_type = 'autovacuum worker'
    )::int end as busy,
    array(
        select c.relname::text from pg_class as c
        join pg_namespace as s on s.oid = c.relnamespace and s.nspname = 'outbox'
        cross join lateral pg_options_to_table(c.reloptions) as o
        where o.option_name = 'autovacuum_enabled' and not o.option_value::boolean
        order by c.relname
    ) as switched_off
"""


async def autovacuum(conn: AsyncConnection) -> list[Finding]:
    """Whether the vacuum comes by itself, and has a worker to come with."""
    [row] = await rows(conn, _AUTOVACUUM)
    found = [
        Finding(
            "autovacuum", PROBLEM, f"{name} is off: dead rows stay for ever, and the queue slows down.", f"{name} = on"
        )
        for name in ("autovacuum", "track_counts")
        if row[name] == "off"
    ]
    found += [
        Finding(
            "autovacuum", PROBLEM, f"autovacuum_enabled is off for outbox.{name}.",
            f"alter table outbox.{name} reset (autovacuum_enabled);",
        )
        for name in row["switched_off"]
    ]  # fmt: skip
    if row["busy"] is not None and row["busy"] >= row["workers"]:
        found.append(
            Finding(
                "autovacuum", WARNING,
                f"All {row['workers']} workers (autovacuum_max_workers) are busy: the queue's tables may have to wait.",
                "If it stays so: more workers, or a higher autovacuum_vacuum_cost_limit.",
            )
        )  # fmt: skip
    busy = "how many (hidden from this role)" if row["busy"] is None else row["busy"]
    return found or [Finding("autovacuum", OK, f"On; busy workers: {busy} of {row['workers']}.")]
