"""Whether attached tables are still captured: their triggers, and what these were made for against what is there."""

import csv
import io
import shlex
from typing import Any

from psycopg import AsyncConnection

from outbox.core.finding import OK, PROBLEM, WARNING, Finding, and_more
from outbox.postgres.diagnosis.rows import rows

# The newest event's id begins with its seq. Of each partition this reads the end of an index.
_SEQUENCE = """
select pg_sequence_last_value(s.relation) as at, greatest(
        (select max(o.seq) from outbox.outbox as o),
        (
            select ('x' || substr(i.digits, 1, 12) || substr(i.digits, 14, 3))::bit(60)::bigint
            from (select replace(e.id::text, '-', '') as digits from outbox.events as e order by e.id desc limit 1) as i
        )
    ) as used
from (select 'outbox.outbox_seq_seq'::regclass as relation) as s
where has_sequence_privilege(s.relation, 'select')
"""


async def sequence(conn: AsyncConnection) -> list[Finding]:
    """Whether the sequence of what is captured is where the rows are: a copy can bring rows without it."""
    found = await rows(conn, _SEQUENCE)
    if not found:
        return [Finding("sequence", OK, "Not examined: this role may not read it.")]
    at, used = found[0]["at"] or 0, found[0]["used"] or 0
    if at >= used:
        return [Finding("sequence", OK, "It is ahead of all that was captured.")]
    return [
        Finding(
            "sequence", PROBLEM,
            f"outbox.outbox_seq_seq is at {at}, and {used} was captured already: a number that still waits in "
            "outbox.outbox makes the writer's transaction fail, and new changes sort before older ones.",
            f"select setval('outbox.outbox_seq_seq', {used});",
        )
    ]  # fmt: skip


# All three kinds of trigger, not the view outbox.attachments: it knows a table by its insert trigger, and that may be
# the one that is missing. The columns are those that the trigger function's body was made for; each is looked for
# now. By the catalogs only, so that a role without any right on the tables can ask.
_TABLES = """
with attached as (
    select t.tgrelid as relation, t.tgfoid as function,
        array_agg(t.tgname::text order by t.tgname) as triggers,
        coalesce(array_agg(t.tgname::text order by t.tgname) filter (where t.tgenabled = 'D'), '{}') as disabled,
        coalesce(array_agg(t.tgname::text order by t.tgname) filter (where t.tgenabled = 'R'), '{}') as replica_only
    from pg_trigger as t
    join pg_proc as p on p.oid = t.tgfoid
    join pg_namespace as s on s.oid = p.pronamespace and s.nspname = 'outbox'
    where t.tgname in ('outbox_insert', 'outbox_update', 'outbox_delete') and not t.tgisinternal
    group by t.tgrelid, t.tgfoid
), described as (
    select a.*, o.options, p.proowner as owner,
        p.prosecdef and 'search_path=pg_catalog, pg_temp' = any (p.proconfig) is true as is_as_made,
        -- By ->>, which turns the json null of an option that was not given into an SQL one.
        (select array_agg(c) from json_array_elements_text((o.options ->> 'columns')::json) as c) as columns,
        (select array_agg(c) from json_array_elements_text((o.options ->> 'condition_columns')::json) as c)
            as condition_columns
    from attached as a
    join pg_proc as p on p.oid = a.function
    cross join lateral (select coalesce(substring(p.prosrc, '^-- (\\{[^\\n]*)\\n'), '{}')::json as options) as o
), wanted as (
    -- A key is one column, whose own name may hold a comma, or several.
    select d.relation, d.function, w.option, w.name
    from described as d
    cross join lateral (
        select 'key' as option, trim(k) as name
        from unnest(
            case
                when exists (
                    select from pg_attribute as c
                    where c.attrelid = d.relation and c.attname = d.options ->> 'key' and not c.attisdropped
                ) then array[d.options ->> 'key']
                else string_to_array(d.options ->> 'key', ',')
            end
        ) as k
        union all
        select 'location', d.options ->> 'location'
        union all
        select 'product_transaction', d.options ->> 'product_transaction'
        union all
        select 'identity', i from json_array_elements_text(d.options -> 'identity') as i
        union all
        select 'condition', c from unnest(d.condition_columns) as c
    ) as w
    where w.name is not null
)
select d.relation::regclass::text as relation, d.triggers, d.disabled, d.replica_only, d.options, d.is_as_made,
    quote_ident(pg_get_userbyid(d.owner)) as owner, c.relkind = 'p' as is_partitioned, c.relispartition as is_partition,
    array(
        select distinct w.name from wanted as w
        where w.relation = d.relation and w.function = d.function
            and not exists (
                select from pg_attribute as a
                where a.attrelid = d.relation and a.attname = w.name and a.attnum > 0 and not a.attisdropped
            )
        order by w.name
    ) as gone,
    -- The function runs as its owner, and the tables can have been given to another since.
    has_schema_privilege(d.owner, o.relnamespace, 'USAGE') and has_any_column_privilege(d.owner, o.oid, 'INSERT')
        and has_sequence_privilege(d.owner, b.oid, 'SELECT') and has_sequence_privilege(d.owner, b.oid, 'UPDATE')
        as writes,
    f.oid is not null as has_serializer,
    f.signature, f.schema, coalesce(has_function_privilege(d.owner, f.oid, 'EXECUTE'), true) as executes,
    coalesce(has_schema_privilege(d.owner, f.pronamespace, 'USAGE'), true) as enters,
    array(
        select (
            a.attname
            || case when a.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype) then ' timestamp' else '' end
        ) collate "C"
        from pg_attribute as a
        where a.attnum > 0 and not a.attisdropped
            and a.attrelid in (d.relation, (select y.typrelid from pg_type as y where y.oid = f.proargtypes[0]))
            and (d.columns is null or a.attname = any (d.columns))
        order by 1
    ) as shape,
    array(
        select a.attname::text from pg_attribute as a
        where a.attrelid = d.relation and a.attnum > 0 and not a.attisdropped and a.attname like '%%\\_ts'
            and a.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype)
        order by a.attnum
    ) as times,
    array(
        select a.attname::text from pg_attribute as a
        where a.attrelid = d.relation and a.attnum > 0 and not a.attisdropped and a.attname = any (d.columns)
        order by a.attnum
    ) as columns,
    array(
        select m.relid::regclass::text from pg_partition_tree(d.relation) as m
        join pg_class as x on x.oid = m.relid and x.relkind in ('r', 'p')
        where m.relid <> d.relation
            and not exists (select from attached as other where other.relation = m.relid)
        order by 1
    ) as unattached
from described as d
join pg_class as c on c.oid = d.relation
join pg_namespace as s on s.nspname = 'outbox'
join pg_class as o on o.relnamespace = s.oid and o.relname = 'outbox'
join pg_class as b on b.relnamespace = s.oid and b.relname = 'doorbell'
left join lateral (
    select p.oid, p.pronamespace, p.proargtypes, p.oid::regprocedure::text as signature,
        quote_ident(s.nspname) as schema
    from pg_proc as p
    join pg_namespace as s on s.oid = p.pronamespace
    join pg_type as y on y.oid = p.proargtypes[0] and y.typtype = 'c'
    where array[s.nspname::text, p.proname::text] = parse_ident(d.options ->> 'serializer') and p.pronargs = 1
    order by p.oid limit 1
) as f on d.options ->> 'serializer' is not null
order by d.relation::regclass::text
"""

# A role or a database can be told to fire no triggers of ours: nobody sees it in the table.
_SILENCED = """
select coalesce(r.rolname, '') as role, coalesce(d.datname, '') as database, s.setting
from pg_db_role_setting as x
cross join lateral unnest(x.setconfig) as s (setting)
left join pg_roles as r on r.oid = x.setrole
left join pg_database as d on d.oid = x.setdatabase
where (x.setdatabase = 0 or d.datname = current_database())
    and s.setting ~* '^(session_replication_role=replica|outbox\\.suppress=(on|true|yes|1))$'
order by 1, 2, 3
"""

# Those of a statement fire after those of its rows, and by their names: what a trigger writes to the same table before
# ours fires is captured before the change that set it off, and subscribers get the older record last.
_EARLIER = """
select t.tgrelid::regclass::text as relation, t.tgname as name
from pg_trigger as t
join pg_proc as p on p.oid = t.tgfoid and p.pronamespace <> 'outbox'::regnamespace
join pg_class as c on c.oid = t.tgrelid
where not t.tgisinternal and t.tgenabled <> 'D' and t.tgtype & 66 = 0  -- neither before nor instead of
    and exists (
        select from pg_trigger as ours
        join pg_proc as f on f.oid = ours.tgfoid and f.pronamespace = 'outbox'::regnamespace
        where ours.tgrelid = t.tgrelid
    )
    and (t.tgtype & 1 = 1 or t.tgname < 'outbox_')
    and p.prosrc ~* '\\m(insert|update|delete|merge)\\M' and strpos(lower(p.prosrc), lower(c.relname)) > 0
order by 1, 2
"""

_ALL = ("outbox_delete", "outbox_insert", "outbox_update")


async def capture(conn: AsyncConnection) -> list[Finding]:
    """Whether the attached tables have their triggers, and these fit."""
    tables = await rows(conn, _TABLES)
    if not tables:
        return [
            Finding(
                "capture", WARNING, "No table is attached: nothing is captured.", "outbox attach TABLE --resource R"
            )
        ]
    found = [each for table in tables for each in _table(table)]
    for row in await rows(conn, _SILENCED):
        who = " in ".join(
            part
            for part in (row["role"] and f"role {row['role']}", row["database"] and f"database {row['database']}")
            if part
        )
        found.append(
            Finding(
                "capture", WARNING, f"{row['setting']} is set for {who}: what it changes is not captured.",
                "If that is not meant: alter role … or alter database … reset that setting.",
            )
        )  # fmt: skip
    found += [
        Finding(
            "capture", WARNING,
            f"{row['relation']}: its trigger {row['name']} fires before the capture, and its function names the table: "
            "what it writes there is captured before the change that set it off.",
            "If it does: let a trigger before the row change the row itself, or one of the statement named like zz_… "
            "write.",
        )
        for row in await rows(conn, _EARLIER)
    ]  # fmt: skip
    if found:
        return found
    names = [table["relation"] for table in tables if not table["is_partition"]] or [tables[0]["relation"]]
    return [Finding("capture", OK, f"Captured: {and_more(names)}.")]


def _table(table: dict[str, Any]) -> list[Finding]:
    if table["options"].get("columns"):
        table["options"]["columns"] = table["columns"]  # those that are still there
    name, again = table["relation"], _attach_again(table["relation"], table["options"])
    faults = _function(table, again)
    found = [*_triggers(table, again), *(faults or _shape(table, again))]
    if not table["is_as_made"]:
        # Its owner may do that, and so may code that runs in the capture.
        said = f"{name}: somebody altered the function of its triggers, and with it what is captured."
        found.append(Finding("capture", PROBLEM, said, again))
    if table["unattached"]:
        said = f"{name}: what is written to {and_more(table['unattached'])} by name is not captured (attached later)."
        found.append(Finding("capture", WARNING, said, again))
    return found


def _triggers(table: dict[str, Any], again: str) -> list[Finding]:
    name, found = table["relation"], []
    for trigger in _ALL:
        change = trigger.removeprefix("outbox_")
        fix = f"alter table {name} enable trigger {trigger};"
        if trigger not in table["triggers"]:
            said = f"{name} has no trigger {trigger}: no {change} is captured."
            found.append(Finding("capture", PROBLEM, said, again))
        elif trigger in table["disabled"]:
            found.append(Finding("capture", PROBLEM, f"{name}: {trigger} is disabled: no {change} is captured.", fix))
        elif trigger in table["replica_only"]:
            said = f"{name}: {trigger} fires for replicated rows only: no {change} of an application is captured."
            found.append(Finding("capture", PROBLEM, said, fix))
    return found


def _function(table: dict[str, Any], again: str) -> list[Finding]:
    """Return what makes the trigger function fail, and with it the application's writes."""
    name, owner, serializer = table["relation"], table["owner"], table["options"].get("serializer")
    faults = []
    if table["gone"]:
        without = _attach_again(name, table["options"], without=table["gone"])
        faults.append((f"{name} has no column {and_more(table['gone'])}, which its triggers use", without))
    if not table["writes"]:
        faults.append((f"{name}: {owner}, who owns its trigger function, may not write to outbox.outbox", again))
    if serializer and not table["has_serializer"]:
        advice = f"Create it again, or attach with another: {again}"
        faults.append((f"{name}: its serializer {serializer} does not exist any more", advice))
    elif not (table["enters"] and table["executes"]):
        right = (
            f"usage on schema {table['schema']}" if table["executes"] else f"execute on function {table['signature']}"
        )
        said = f"{name}: {owner}, as whom the capture runs, may not run {serializer}"
        faults.append((said, f"grant {right} to {owner};"))
    return [Finding("capture", PROBLEM, f"{said}: the application's writes fail.", advice) for said, advice in faults]


def _shape(table: dict[str, Any], again: str) -> list[Finding]:
    shape = table["options"].get("shape")
    if shape is not None and shape != table["shape"]:
        said = f"{table['relation']} was altered since it was attached: its capture costs three times as much."
        return [Finding("capture", WARNING, said, again)]
    if shape is None and table["options"].get("serializer") is None and table["times"]:
        said = (
            f"{table['relation']}: {and_more(table['times'])} came after it was attached, and is sent as text, not as "
            "epoch seconds."
        )
        return [Finding("capture", WARNING, said, again)]
    return []


def _attach_again(name: str, options: dict[str, Any], *, without: list[str] | None = None) -> str:
    """Return the command that attaches the table as it is attached, without options of columns that are gone."""
    words = ["outbox", "attach", shlex.quote(name), "--resource", shlex.quote(options.get("resource") or "R")]
    for flag, option in (
        ("--key", "key"), ("--location", "location"), ("--product-transaction", "product_transaction"),
        ("--serializer", "serializer"),
    ):  # fmt: skip
        value = options.get(option)
        if not options or (option == "serializer" and value is None):
            continue
        if without and value is not None and set(value.split(",")) & set(without):
            words += [flag, "COLUMN"]
        else:
            words += [flag, shlex.quote(value or "")]
    if (columns := options.get("columns")) is not None:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(columns)
        words += ["--columns", shlex.quote(text.getvalue()) if columns else "COLUMNS"]
    if condition := options.get("condition"):
        is_unfit = not set(options.get("condition_columns") or ()).isdisjoint(without or ())
        words += ["--condition", "CONDITION" if is_unfit else shlex.quote(condition)]
    return " ".join(words)
