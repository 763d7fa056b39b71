"""Whether the expands that configs ask for are registered, and the functions that give them can be called."""

from psycopg import AsyncConnection

from outbox.core.finding import OK, WARNING, Finding, and_more
from outbox.postgres.diagnosis.rows import rows

# By the catalog alone, as far as functions go: a role without any right on them can ask. A function is written as SQL
# writes it; without a schema it is PostgreSQL's own.
_REGISTERED = """
select o.options ->> 'resource' as resource, e.name, e.function, quote_ident(pg_get_userbyid(p.proowner)) as owner,
    f.oid is not null as exists,
    coalesce(has_function_privilege(p.proowner, f.oid, 'EXECUTE'), true) as executes,
    coalesce(has_schema_privilege(p.proowner, f.pronamespace, 'USAGE'), true) as enters, quote_ident(f.schema) as schema
from pg_proc as p
join pg_namespace as s on s.oid = p.pronamespace and s.nspname = 'outbox'
cross join lateral (select substring(p.prosrc, '^-- ([^\\n]*)\\n')::json as options) as o
cross join lateral json_each_text(o.options -> 'expands') as e (name, function)
cross join lateral (select parse_ident(e.function) as parts) as i
left join lateral (
    select g.oid, g.pronamespace, n.nspname as schema from pg_proc as g
    join pg_namespace as n on n.oid = g.pronamespace
    where g.proname = i.parts[cardinality(i.parts)]
        and n.nspname = case when cardinality(i.parts) > 1 then i.parts[1] else 'pg_catalog' end
        and g.pronargs = 1 and g.proargtypes[0] = 'text'::regtype
    order by g.oid limit 1
) as f on true
where p.proname ~ '^expand_[0-9a-f]{32}$'
order by 1, 2
"""

_ASKED = """
select c.resource, trim(e) as name, count(*)::int as configs
from outbox.postback_configs as c
cross join lateral unnest(string_to_array(c.expands, ',')) as e
where c.deleted_at is null and c.is_active and c.expands <> ''
group by 1, 2 order by 1, 2
"""


async def expands(conn: AsyncConnection) -> list[Finding]:
    """Whether all that is asked for is sent."""
    registered = await rows(conn, _REGISTERED)
    known = {(row["resource"], row["name"]) for row in registered}
    found = []
    for row in registered:
        which, function = f"{row['name']} of {row['resource']}", f"{row['function']}(text)"
        if not row["exists"]:
            found.append(
                Finding(
                    "expands", WARNING, f"{which}: its function {function} does not exist: it is not sent.",
                    "Create it again, or select outbox.unregister_expand(…).",
                )
            )  # fmt: skip
        elif not (row["executes"] and row["enters"]):
            right = f"usage on schema {row['schema']}" if row["executes"] else f"execute on function {function}"
            found.append(
                Finding(
                    "expands", WARNING,
                    f"{which}: {row['owner']}, as whom the capture runs, may not run {function}: it is not sent.",
                    f"grant {right} to {row['owner']};",
                )
            )  # fmt: skip
    for row in await rows(conn, _ASKED):
        if (row["resource"], row["name"]) not in known:
            count = "1 config asks" if row["configs"] == 1 else f"{row['configs']} configs ask"
            found.append(
                Finding(
                    "expands", WARNING, f"{count} for {row['name']} of {row['resource']}, which is not registered.",
                    "select outbox.register_expand(resource, name, function); or outbox config edit ID --expands",
                )
            )  # fmt: skip
    if found:
        return found
    names = [f"{row['name']} of {row['resource']}" for row in registered]
    said = f"Registered: {and_more(names)}." if names else "None is registered, and no config asks for one."
    return [Finding("expands", OK, said)]
