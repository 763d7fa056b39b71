"""Names and values of strangers are data: in the functions of the schema, in what they generate, and in our queries."""

import psycopg
import pytest
from psycopg import sql

from outbox.postgres import capture
from outbox.postgres.history import deliveries
from outbox.postgres.selection import Filter
from tests.tried import route

HOSTILE = [
    "select",
    "a'b''c",
    'a"b""c',
    "line\nbreak\ttab",
    "$$ $outbox$ $1 $body$",
    "%I %L %s %% %",
    "\\' \\x \\",
    "'); drop table outbox.outbox; --",
    '"; drop table outbox.events; --',
    "/* */ -- ;",
    " ",
    "x" * 63,
    "é" * 31,
]


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_names_are_names(db: str, conn: psycopg.Connection, name: str) -> None:
    """A schema, table, columns, resource, location and record of this name are captured, routed, found and let go."""
    record = {"key": name, "location": name[:36], "product": name}
    own = sql.Identifier(name)
    # Three columns of one hostile name each, within the 63 bytes that a name may have.
    key, location, product = (name.encode()[:61].decode(errors="ignore") + suffix for suffix in ("_k", "_l", "_p"))
    conn.execute(sql.SQL("create schema {}").format(own))
    try:
        conn.execute(
            sql.SQL("create table {}.{} ({} text primary key, {} text, {} text)").format(
                own, own, *map(sql.Identifier, (key, location, product))
            )
        )
        table = sql.SQL("{}.{}").format(own, own).as_string(conn)
        async with await psycopg.AsyncConnection.connect(db, autocommit=True) as other:
            await capture.attach(
                other, table, resource=name, key=key, location=location, product_transaction=product, serializer=None
            )
            conn.execute(
                "insert into outbox.postback_configs (location_id, resource, url) values (%s, %s, 'http://h/')",
                [record["location"], name],
            )
            # Without parameters, because psycopg would look for them in a name with a percent sign.
            values = map(sql.Literal, record.values())
            conn.execute(sql.SQL("insert into {}.{} values ({}, {}, {})").format(own, own, *values))
            found = conn.execute(
                "select resource, resource_id, location_id, product_transaction_id from outbox.outbox"
            ).fetchall()
            assert found == [(name, record["key"], record["location"], record["product"])]
            assert await route(other) == 1
            chosen = Filter(resource=name, record=name, locations=(record["location"],))
            assert len(await deliveries(other, chosen, limit=9)) == 1
            assert await deliveries(other, Filter(resource=name + "x"), limit=9) == []
            await capture.detach(other, table)
        conn.execute(sql.SQL("delete from {}.{}").format(own, own))
        assert conn.execute("select count(*) from outbox.outbox").fetchone() == (0,)
    finally:
        conn.execute(sql.SQL("drop schema {} cascade").format(own))


def test_each_function_is_safe_to_own(conn: psycopg.Connection) -> None:
    """Each pins its search_path, is the schema owner's, and is nobody else's to call: those of attached tables too."""
    conn.execute("create table contacts (id int primary key)")
    conn.execute("select outbox.attach('contacts', 'contact')")
    functions = conn.execute("""
        select p.oid::regprocedure::text, p.prosecdef, p.proconfig, p.proowner = n.nspowner as is_owners,
            exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a where a.grantee = 0)
        from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
        where n.nspname = 'outbox' order by 1
    """).fetchall()
    assert len(functions) >= 11
    assert {name for name, *_ in functions if "capture" in name or "contacts" in name}
    for name, _, config, is_owners, is_everybodys in functions:
        assert "search_path=pg_catalog, pg_temp" in (config or []), name
        assert is_owners, name
        assert not is_everybodys, name
    assert any(is_definer for _, is_definer, *_ in functions)
