"""How the queue fares: its partitions, its daemons, what waits, and the configs that it waits for."""

from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from outbox.core.finding import OK, PROBLEM, WARNING, Finding, and_more, duration
from outbox.postgres import activity
from outbox.postgres.diagnosis.rows import rows
from outbox.postgres.figures import figures, shown_url

DAYS_AHEAD = 6
"""Daemons make a week of partitions, each minute: today and these days are there when one did its work yesterday."""

# By what the parent really has: a table of that name that was detached takes no rows.
_PARTITIONS = """
select p.relname as parent, (current_timestamp at time zone 'UTC')::date + d.ahead as day, d.ahead
from pg_class as p
join pg_namespace as s on s.oid = p.relnamespace and s.nspname = 'outbox'
cross join generate_series(0, %(days)s::int) as d (ahead)
where p.relname in ('events', 'attempts') and p.relkind = 'p' and not exists (
    select from pg_inherits as i join pg_class as c on c.oid = i.inhrelid
    where i.inhparent = p.oid
        and c.relname = p.relname || to_char((current_timestamp at time zone 'UTC')::date + d.ahead, '_YYYYMMDD')
)
order by p.relname, d.ahead
"""
_DEFAULTS = """
select c.relname as name, p.relname as parent, pg_relation_size(c.oid) as bytes,
    pg_size_pretty(pg_total_relation_size(c.oid)) as size, has_table_privilege(c.oid, 'SELECT') as readable
from pg_class as c
join pg_namespace as s on s.oid = c.relnamespace and s.nspname = 'outbox'
join pg_inherits as i on i.inhrelid = c.oid
join pg_class as p on p.oid = i.inhparent and p.relname in ('events', 'attempts')
where pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT'
order by p.relname
"""
_DEFAULT_HAS_ROWS = {
    "events_default": "select exists (select from outbox.events_default) as has",
    "attempts_default": "select exists (select from outbox.attempts_default) as has",
}


async def partitions(conn: AsyncConnection) -> list[Finding]:
    """Whether today and the coming days have partitions, and whether rows lie where none was."""
    found = []
    missing: dict[str, list[dict[str, Any]]] = {}
    for row in await rows(conn, _PARTITIONS, {"days": DAYS_AHEAD}):
        missing.setdefault(row["parent"], []).append(row)
    for parent, days in missing.items():
        soon = days[0]["ahead"] <= 1
        found.append(
            Finding(
                "partitions", PROBLEM if soon else WARNING,
                f"outbox.{parent} has no partition for {and_more([str(day['day']) for day in days])}: rows of then "
                "will lie in the default one, and are not dropped with a day but deleted row by row.",
                "Let a daemon run, which makes them each minute, or: select outbox.make_partitions();",
            )
        )  # fmt: skip
    for row in await rows(conn, _DEFAULTS):
        # A table without a page has no rows; one that has some may still be empty.
        holds = row["bytes"] > 0
        if holds and row["readable"] and row["name"] in _DEFAULT_HAS_ROWS:
            [answer] = await rows(conn, _DEFAULT_HAS_ROWS[row["name"]])
            holds = answer["has"]
        if holds:
            found.append(
                Finding(
                    "partitions", OK,
                    f"outbox.{row['name']} has rows ({row['size']}): of days without a partition. They are as good as "
                    "all others, and retention deletes them row by row.",
                )
            )  # fmt: skip
    return found or [Finding("partitions", OK, f"Today and the next {DAYS_AHEAD} days have theirs.")]


WAIT_WARNING = 60.0
"""Seconds that something may wait for a daemon."""

# The first in the order of capture: no index has the time.
_OLDEST_UNROUTED = """
select extract(epoch from now() - o.created_at)::float8 as seconds from outbox.outbox as o order by o.seq limit 1
"""


async def daemons(conn: AsyncConnection, *, application_name: str | None, wait: float = WAIT_WARNING) -> list[Finding]:
    """Whether a daemon is there, and keeps up.

    `application_name`: what the DSN calls its connections, the daemon's too; None where it says nothing.
    `wait`: seconds that something may wait.
    """
    count = len(await activity.daemons(conn, application_name=application_name))
    now = await figures(conn)
    oldest = await rows(conn, _OLDEST_UNROUTED)
    waiting = []
    if oldest and oldest[0]["seconds"] >= wait:
        changes = "change waits" if now.unrouted == 1 else "changes wait"
        waiting.append(
            f"{now.unrouted} captured {changes} to be routed, the oldest for {duration(oldest[0]['seconds'])}"
        )
    if now.due and now.oldest_due_s >= wait:
        due = "delivery is" if now.due == 1 else "deliveries are"
        waiting.append(f"{now.due} {due} due, the oldest for {duration(now.oldest_due_s)}")
    if not count:
        said = "No daemon is connected to this database"
        if waiting:
            return [Finding("daemons", PROBLEM, f"{said}: {'; '.join(waiting)}.", "outbox run")]
        return [Finding("daemons", WARNING, f"{said}: nothing will be sent.", "outbox run")]
    here = f"{count} connected" if application_name is None else f"{count} connections named {application_name}"
    if waiting:
        return [
            Finding(
                "daemons", WARNING, f"{here}, and yet {each}.",
                "See the daemon's log. Many due for one config: its own limit. Many for all: more workers or daemons.",
            )
            for each in waiting
        ]  # fmt: skip
    return [Finding("daemons", OK, f"{here}; nothing waits for long.")]


FAILING = 10
"""Tries in a row that failed, from which on a config is called failing."""
_DAYS = 7
"""Within which they failed."""
_COUNTED = 10_000
_READ = 1000
_SHOWN = 10

# Each probe is bounded. A config fails when no success came after the tenth last failure, so most cost one probe of a
# few days' partitions. The tempting "last success, and how many failures since" opens every day of the history for
# every config. A condition of a lateral join stands inside it: in its ON it would be asked after all was counted.
_CONFIGS = f"""
select c.id, c.resource, c.is_active, c.paused_at, c.disabled_at, c.disabled_reason,
    {shown_url("c.url")} as url, owed.count as owed,
    (
        select a.at from outbox.attempts as a
        where a.config_id = c.id and a.outcome = 'delivered' order by a.at desc limit 1
    ) as success_at,
    (
        select a.error from outbox.attempts as a
        where a.config_id = c.id and a.outcome <> 'delivered' order by a.at desc limit 1
    ) as error
from outbox.postback_configs as c
cross join lateral (
    select count(*)::int as count from (
        select from outbox.deliveries as d
        where d.state = 'pending' and d.config_id = c.id and (not c.is_active or c.paused_at is not null)
        limit %(most)s
    ) as d
) as owed
left join lateral (
    select a.at from outbox.attempts as a
    where a.config_id = c.id and a.outcome <> 'delivered' and c.is_active
        and a.at between now() - make_interval(days => %(days)s) and now() + interval '1 day'
    order by a.at desc limit 1 offset %(failing)s::int - 1
) as failed on true
where c.deleted_at is null and (
    owed.count > 0 or c.disabled_at is not null or (
        failed.at is not null and not exists (
            select from outbox.attempts as a
            where a.config_id = c.id and a.outcome = 'delivered' and a.at >= failed.at
                and a.at <= now() + interval '1 day'
        )
    )
)
order by c.created_at, c.id
limit %(shown)s
"""  # noqa: S608 - our own words
_OPEN_CIRCUITS = f"""
select c.id, c.circuit_opened_at, {shown_url("c.url")} as url
from outbox.postback_configs as c
where c.governed and c.is_active and c.paused_at is null and c.deleted_at is null and c.circuit_opened_at is not null
order by c.circuit_opened_at, c.id limit %(shown)s
"""  # noqa: S608 - our own words
_RESOURCES = """
select c.resource, count(*)::int as configs from outbox.postback_configs as c
where c.deleted_at is null and c.is_active and c.resource <> 'postbackconfig' and not exists (
    select from pg_trigger as t
    join pg_proc as p on p.oid = t.tgfoid
    join pg_namespace as s on s.oid = p.pronamespace and s.nspname = 'outbox'
    where t.tgname like 'outbox\\_%%' and not t.tgisinternal
        and coalesce(substring(p.prosrc, '^-- (\\{[^\\n]*)\\n'), '{}')::json ->> 'resource' = c.resource
)
group by c.resource order by c.resource
"""


async def configs(conn: AsyncConnection, *, failing: int = FAILING) -> list[Finding]:
    """Which configs only fail, were switched off for it, hold back a debt, or watch what nobody captures."""
    held, failed = [], []
    asked = {"most": _COUNTED, "failing": failing, "days": _DAYS, "shown": _READ}
    for row in await rows(conn, _CONFIGS, asked):
        name = f"{row['id']} ({row['url']})"
        if row["owed"] or row["disabled_at"]:
            count = f"{row['owed']} or more" if row["owed"] == _COUNTED else str(row["owed"])
            state = (
                f"switched off since {row['disabled_at']:%Y-%m-%d %H:%M %Z} ({row['disabled_reason']})"
                if row["disabled_at"]
                else f"paused since {row['paused_at']:%Y-%m-%d %H:%M %Z}"
                if row["paused_at"]
                else "inactive"
            )
            advice = (
                f"outbox config resume {row['id']}"
                if row["paused_at"] and row["is_active"]
                else f"outbox config edit {row['id']} --is-active"
            )
            held.append(Finding("configs", WARNING, f"{name} is {state}; deliveries owed: {count}.", advice))
        else:
            since = f"since {row['success_at']:%Y-%m-%d %H:%M %Z}" if row["success_at"] else "ever"
            said = f"{name} acknowledged nothing {since}; its last try failed: {row['error'] or 'no reason kept'}."
            advice = f"outbox config test {row['id']}; outbox config pause {row['id']} keeps its tries"
            failed.append(Finding("configs", WARNING, said, advice))
    opened = [
        Finding(
            "configs", WARNING,
            f"{row['id']} ({row['url']}): its circuit is open since {row['circuit_opened_at']:%Y-%m-%d %H:%M %Z}, "
            "and it gets probes only.",
            f"outbox config test {row['id']}; the first success closes it",
        )
        for row in await rows(conn, _OPEN_CIRCUITS, {"shown": _READ})
    ]  # fmt: skip
    found = [*_shown(held), *_shown(failed), *_shown(opened)]
    for row in await rows(conn, _RESOURCES):
        count = "1 config watches" if row["configs"] == 1 else f"{row['configs']} configs watch"
        found.append(
            Finding(
                "configs", WARNING, f"{count} the resource {row['resource']}, and no attached table has it.",
                "outbox attach TABLE --resource with that name, or outbox config edit.",
            )
        )  # fmt: skip
    return found or [Finding("configs", OK, "None fails constantly, none holds back what it is owed.")]


def _shown(found: list[Finding]) -> list[Finding]:
    rest = len(found) - _SHOWN
    more = [Finding("configs", WARNING, f"And {rest} more like these.", "outbox status")] if rest > 0 else []
    return found[:_SHOWN] + more


_SEALED = """
select c.id, c.basic_auth_username, c.basic_auth_password, c.signing_secrets from outbox.postback_configs as c
where c.deleted_at is null and (c.basic_auth_username is not null or c.signing_secrets is not null)
order by c.created_at, c.id
"""
_URLS = """
select c.id, c.url from outbox.postback_configs as c
where c.deleted_at is null and c.is_active
order by c.created_at, c.id
"""


async def sealed(conn: AsyncConnection) -> list[tuple[UUID, list[str]]]:
    """Return each config that keeps secrets, with their tokens."""
    found = await rows(conn, _SEALED)
    return [(row["id"], [token for name, token in row.items() if name != "id" and token is not None]) for row in found]


async def urls(conn: AsyncConnection) -> list[tuple[UUID, str]]:
    """Return each active config with its URL."""
    return [(row["id"], row["url"]) for row in await rows(conn, _URLS)]
