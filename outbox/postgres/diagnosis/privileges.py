"""What the daemon's role may do, against what the daemon does. A statement that is new there belongs in this list."""

from typing import NamedTuple

from psycopg import AsyncConnection

from outbox.core.finding import OK, PROBLEM, Finding
from outbox.postgres.diagnosis.rows import rows


class Need(NamedTuple):
    """What the daemon does to one object of the schema."""

    kind: str
    """table, sequence or function."""
    name: str
    privileges: tuple[str, ...]
    why: str


# FOR NO KEY UPDATE wants UPDATE, also where nothing is updated: so it is with outbox.outbox.
DAEMON = (
    Need("table", "migrations", ("SELECT",), "compare the schema"),
    Need("table", "outbox", ("SELECT", "UPDATE", "DELETE"), "route"),
    Need("table", "events", ("SELECT", "INSERT"), "route"),
    Need("table", "postback_configs", ("SELECT", "UPDATE"), "find subscribers and switch off what only fails"),
    Need("table", "config_state", ("SELECT", "INSERT", "UPDATE"), "count failures"),
    Need("table", "deliveries", ("SELECT", "INSERT", "UPDATE", "DELETE"), "claim and settle"),
    Need("table", "attempts", ("INSERT",), "record tries"),
    Need("sequence", "doorbell", ("SELECT", "UPDATE"), "be woken"),
    Need("sequence", "outbox_seq_seq", ("SELECT",), "know what was captured while it went to sleep"),
    Need("function", "tell_of_config(uuid, text, text)", ("EXECUTE",), "tell of configs in trouble"),
    Need("function", "make_partitions(integer)", ("EXECUTE",), "make tomorrow's partitions"),
)
# Without these it delivers, and its history grows.
HOUSEKEEPING = (
    Need("function", "partitions()", ("EXECUTE",), "let history go"),
    Need(
        "function",
        "prune_partition(text, timestamp with time zone, timestamp with time zone, boolean)",
        ("EXECUTE",),
        "let history go",
    ),
    Need(
        "function",
        "prune_default(text, timestamp with time zone, timestamp with time zone, bigint, integer, boolean)",
        ("EXECUTE",),
        "let history go",
    ),
)

# By the catalogs, which everybody may read: 'outbox.events'::regclass fails for want of the very right that is asked
# about. What does not exist is the schema check's to tell.
_MISSING = """
with needed as (
    select * from unnest(%(kinds)s::text[], %(names)s::text[], %(privileges)s::text[])
        with ordinality as n (kind, name, privilege, place)
), held as (
    select n.*, case
        when n.kind = 'function' then (
            select has_function_privilege(p.oid, n.privilege) from pg_proc as p
            where p.pronamespace = s.oid
                and p.proname || '(' || oidvectortypes(p.proargtypes) || ')' = n.name
        )
        when n.kind = 'sequence' then (
            select has_sequence_privilege(c.oid, n.privilege) from pg_class as c
            where c.relnamespace = s.oid and c.relname = n.name
        )
        else (
            -- A role may have a right on the columns that it changes, and not on the table.
            select case
                when n.privilege = 'DELETE' then has_table_privilege(c.oid, n.privilege)
                else has_any_column_privilege(c.oid, n.privilege)
            end from pg_class as c
            where c.relnamespace = s.oid and c.relname = n.name
        )
    end as has
    from needed as n
    join pg_namespace as s on s.nspname = 'outbox'
)
select 'schema' as kind, 'outbox' as name, array['USAGE'] as privileges, quote_ident(current_user) as role, 0 as place
from pg_namespace as s where s.nspname = 'outbox' and not has_schema_privilege(s.oid, 'USAGE')
union all
select h.kind, h.name, array_agg(h.privilege order by h.place), quote_ident(current_user), min(h.place)
from held as h where not h.has group by h.kind, h.name
order by place
"""


async def privileges(conn: AsyncConnection) -> list[Finding]:
    """Whether the role may do all that the daemon does; what is missing, each with its GRANT."""
    each = [(need.kind, need.name, privilege) for need in (*DAEMON, *HOUSEKEEPING) for privilege in need.privileges]
    kinds, names, wanted = zip(*each, strict=True)
    missing = await rows(conn, _MISSING, {"kinds": list(kinds), "names": list(names), "privileges": list(wanted)})
    why = {need.name: need.why for need in (*DAEMON, *HOUSEKEEPING)}
    found = []
    for row in missing:
        lacks, role = ", ".join(row["privileges"]), row["role"]
        if row["kind"] == "schema":
            found.append(
                Finding(
                    "privileges", PROBLEM, f"Role {role} lacks {lacks} on schema outbox: it sees none of the tables.",
                    f"grant usage on schema outbox to {role};",
                )
            )  # fmt: skip
        else:
            found.append(
                Finding(
                    "privileges", PROBLEM,
                    f"Role {role} lacks {lacks} on {row['kind']} outbox.{row['name']}: the daemon cannot "
                    f"{why[row['name']]}.",
                    f"grant {lacks.lower()} on {row['kind']} outbox.{row['name']} to {role};",
                )
            )  # fmt: skip
    return found or [Finding("privileges", OK, "The role may do all that the daemon does.")]
