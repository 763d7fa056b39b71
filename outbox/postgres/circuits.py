"""Configs in trouble: counts their failures, and makes each change of their circuit once, with an event that tells it.

What the counts mean is decided in core/circuit.py.
"""

from collections.abc import Mapping
from typing import LiteralString

from psycopg import AsyncConnection

from outbox.core.circuit import Change, Condition, Run
from outbox.core.model import ConfigId

FIRST_PROBE_SECONDS = 5
"""From the opening of a circuit to its first probe. Each later wait is twice the last, up to LONGEST_PROBE_SECONDS."""

LONGEST_PROBE_SECONDS = 300

# Rows are locked in the order of their key before any is changed: two daemons count at the same time. A config that
# succeeds and never failed has no row, and gets none.
_NOTE = """
with told as materialized (
    select * from unnest(%(config)s::uuid[], %(succeeded)s::boolean[], %(failures)s::integer[], %(troubles)s::integer[])
        as t (config_id, succeeded, failures, troubles)
), held as materialized (
    select s.config_id from outbox.config_state as s join told as t on t.config_id = s.config_id
    order by s.config_id
    for no key update of s
), counted as (
    update outbox.config_state as s
    set failures = case when t.succeeded then 0 else s.failures end + t.failures,
        troubles = case when t.succeeded then 0 else s.troubles end + t.troubles,
        failing_since = case
            when t.failures = 0 and (t.succeeded or s.failures = 0) then null
            when t.succeeded or s.failed_at < now() - make_interval(secs => %(silence)s) then now()
            else coalesce(s.failing_since, now())
        end,
        failed_at = case when t.failures > 0 then now() else s.failed_at end
    from held as h join told as t on t.config_id = h.config_id
    where s.config_id = h.config_id
    returning s.config_id, s.failures, s.troubles, s.failing_since
), begun as (
    insert into outbox.config_state as s (config_id, failures, troubles, failing_since, failed_at)
    select t.config_id, t.failures, t.troubles, now(), now() from told as t
    where t.failures > 0 and not exists (select from held as h where h.config_id = t.config_id)
    order by t.config_id
    on conflict (config_id) do nothing
    returning s.config_id, s.failures, s.troubles, s.failing_since
), now_known as (
    select * from counted union all select * from begun
)
select c.id::text, coalesce(k.failures, 0), coalesce(k.troubles, 0),
    coalesce(extract(epoch from now() - k.failing_since), 0)::float8,
    c.is_active, c.circuit_opened_at is not null, extract(epoch from now() - c.exhausted_at)::float8
from told as t
join outbox.postback_configs as c on c.id = t.config_id and c.deleted_at is null
left join now_known as k on k.config_id = t.config_id
"""

_CONDITIONS: Mapping[Change, tuple[LiteralString, LiteralString]] = {
    Change.EXHAUSTED: ("exhausted_at is null", "exhausted_at = now()"),
    Change.OPENED: (
        "circuit_opened_at is null and is_active", "circuit_opened_at = now(), revision = revision + 1"
    ),
    Change.CLOSED: ("circuit_opened_at is not null", "circuit_opened_at = null, revision = revision + 1"),
    Change.DISABLED: (
        "is_active",
        """is_active = false, disabled_at = now(), disabled_reason = %(reason)s, circuit_opened_at = null,
        revision = revision + 1, modified_at = now()""",
    ),
    Change.RECOVERED: ("exhausted_at is not null", "exhausted_at = null"),
}  # fmt: skip

# Only the one that changes the config tells of it, however many daemons see the reason for it.
_MAKE = """
with changed as (
    update outbox.postback_configs as c set {assignments}
    where c.id = %(config)s and c.deleted_at is null and {condition}
    returning c.id
), probed as (
    update outbox.config_state as s
    set probes = 0, probe_at = now() + make_interval(secs => %(first_probe)s)
    from changed as c where s.config_id = c.id and %(change)s = 'opened'
)
select outbox.tell_of_config(c.id, %(change)s, %(reason)s) from changed as c
"""

_FAILING = """
select c.id::text from outbox.config_state as s
cross join lateral (
    select c.id from outbox.postback_configs as c where c.id = s.config_id and c.is_active and c.deleted_at is null
) as c
where s.failures > 0
union
select c.id::text from outbox.postback_configs as c
where c.exhausted_at is not null and c.is_active and c.deleted_at is null
"""


async def note(
    conn: AsyncConnection, told: Mapping[ConfigId, Run], *, silence: float | None
) -> dict[ConfigId, Condition]:
    """Count the tries and return how each config stands now; deleted ones are left out.

    `silence`: who had no failure for so many seconds fails since now; None: for however long.
    """
    cursor = await conn.execute(
        _NOTE.encode(),
        {
            "config": list(told),
            "succeeded": [each.succeeded for each in told.values()],
            "failures": [each.failures for each in told.values()],
            "troubles": [each.troubles for each in told.values()],
            "silence": silence,
        },
    )
    return {
        config_id: Condition(
            failures=failures, troubles=troubles, failing_seconds=failing_seconds, is_active=is_active,
            circuit_is_open=is_open, exhausted_seconds=exhausted,
        )
        for config_id, failures, troubles, failing_seconds, is_active, is_open, exhausted in await cursor.fetchall()
    }  # fmt: skip


async def make(conn: AsyncConnection, config_id: ConfigId, change: Change, reason: str | None) -> bool:
    """Make a change and its event. Returns whether it was to be made: another daemon may have been faster."""
    condition, assignments = _CONDITIONS[change]
    cursor = await conn.execute(
        _MAKE.replace("{condition}", condition).replace("{assignments}", assignments).encode(),
        {"config": config_id, "change": change.value, "reason": reason, "first_probe": FIRST_PROBE_SECONDS},
    )
    return bool(cursor.rowcount)


async def failing(conn: AsyncConnection) -> set[ConfigId]:
    """Return the active configs whose next success is news: the last try failed, by any daemon's count, or one died."""
    return {config_id for (config_id,) in await (await conn.execute(_FAILING.encode())).fetchall()}
