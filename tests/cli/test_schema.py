"""`outbox migrate`, `attach` and `detach` do what the SQL does, and pass on what it says."""

import asyncio

import psycopg
import pytest

from outbox.postgres import capture
from tests.servers import role
from tests.tried import outbox

CONTACTS = "create table contacts (id int primary key, location_id text, shop text, note text)"


def captured(conn: psycopg.Connection) -> list[tuple[str, str, str | None, str]]:
    return conn.execute(
        "select resource, resource_id, location_id, data::text from outbox.outbox order by seq"
    ).fetchall()


def test_migrate_installs_and_check_compares(empty_db: str) -> None:
    """A check fails before and succeeds after, and a second run has nothing to do."""
    assert outbox(empty_db, "migrate", "--check").returncode == 1
    done = outbox(empty_db, "migrate")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "applied 0001_ledger.sql")
    assert outbox(empty_db, "migrate").stdout == "Nothing to do: the schema is up to date.\n"
    assert outbox(empty_db, "migrate", "--check").returncode == 0


def test_a_command_names_what_an_older_schema_lacks(empty_db: str) -> None:
    """A database that was migrated halfway is told from one without the schema."""
    outbox(empty_db, "migrate")
    with psycopg.connect(empty_db) as conn:
        conn.execute("create table contacts (id int primary key)")
        conn.execute("drop function outbox.attach(regclass, text, text, text, text, regproc, text[], text)")
        conn.execute("delete from outbox.migrations where version >= 3")
    done = outbox(empty_db, "attach", "contacts", "--resource", "contact")
    assert done.returncode == 1
    assert "The database is behind" in done.stderr
    assert "outbox migrate" in done.stderr


def test_an_attached_table_is_captured_until_it_is_detached(db: str, conn: psycopg.Connection) -> None:
    """With no option the usual columns are taken. Detaching twice is no error."""
    conn.execute(CONTACTS)
    done = outbox(db, "attach", "public.contacts", "--resource", "contact")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "Attached contacts:",
        "resource             contact",
        "key                  id",
        "location             location_id",
        "product transaction  -",
        "serializer           -",
        "columns              -",
        "condition            -",
    ]
    conn.execute("insert into contacts values (1, 'L', 'S', 'n')")
    assert [row[:3] for row in captured(conn)] == [("contact", "1", "L")]
    assert outbox(db, "detach", "public.contacts").stdout == "Detached public.contacts.\n"
    conn.execute("insert into contacts values (2, 'L', 'S', 'n')")
    assert len(captured(conn)) == 1
    again = outbox(db, "detach", "public.contacts")
    assert (again.returncode, again.stdout) == (0, "Nothing to do: public.contacts is not attached.\n")


def test_attaching_again_is_an_update(db: str, conn: psycopg.Connection) -> None:
    """The options of the second time hold, and each change is captured once."""
    conn.execute(CONTACTS)
    conn.execute("alter table contacts alter shop set not null")
    conn.execute(
        """create function short(contacts) returns json language sql as 'select json_build_object(''n'', $1.note)'"""
    )
    outbox(db, "attach", "contacts", "--resource", "contact")
    done = outbox(
        db, "attach", "contacts", "--resource", "person", "--key", "shop,id", "--location", "",
        "--product-transaction", "shop", "--serializer", "public.short",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    conn.execute("insert into contacts values (1, 'L', 'S', 'n')")
    assert captured(conn) == [("person", "S,1", None, '{"n" : "n"}')]
    assert conn.execute("select product_transaction_id from outbox.outbox").fetchone() == ("S",)

    async def attached() -> list[capture.Attachment]:
        async with await psycopg.AsyncConnection.connect(db, autocommit=True) as aconn:
            return await capture.attachments(aconn)

    [found] = asyncio.run(attached())
    assert (found.relation, found.resource, found.key, found.location) == ("contacts", "person", "shop,id", None)
    assert (found.product_transaction, found.serializer) == ("shop", "public.short")


def test_columns_and_a_condition_are_options_too(db: str, conn: psycopg.Connection) -> None:
    """A name with a comma stands in quotes."""
    conn.execute(CONTACTS)
    conn.execute('alter table contacts add "a,b" int')
    done = outbox(
        db, "attach", "contacts", "--resource", "contact", "--columns", 'note, "a,b"', "--condition", "note <> ''"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2:] == ["columns              note, a,b", "condition            note <> ''"]
    conn.execute("insert into contacts values (1, 'L', 'S', ''), (2, 'L', 'S', 'n')")
    assert captured(conn) == [("contact", "2", "L", '{"note":"n","a,b":null}')]


def test_a_partitioned_table_is_attached_with_its_partitions(db: str, conn: psycopg.Connection) -> None:
    """A change is captured whether it names the table or the partition."""
    conn.execute("create table contacts (id int primary key, location_id text) partition by range (id)")
    conn.execute("create table contacts_low partition of contacts for values from (0) to (100)")
    assert outbox(db, "attach", "contacts", "--resource", "contact").returncode == 0
    conn.execute("insert into contacts values (1, 'L')")
    conn.execute("insert into contacts_low values (2, 'L')")
    assert [row[1] for row in captured(conn)] == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--resource", "r"], ["There is no table nowhere", "public.contacts"]),
        (["shop.nowhere", "--resource", "r"], ["There is no table shop.nowhere", "public.contacts"]),
        (["a.b.c.d", "--resource", "r"], ["a.b.c.d", "is no name"]),
        (['"', "--resource", "r"], []),
        (["contacts", "--resource", "r" * 129], ["resource must have 1 to 128 characters."]),
        (["contacts", "--resource", "r", "--columns", 'id,"note'], ["--columns", "quote"]),
        (["contacts", "--resource", "r", "--key", "absent"], ["key", "absent"]),
        (["contacts", "--resource", "r", "--key", "note"], ["key", "note", "NOT NULL"]),
        (["contacts", "--resource", "r", "--location", "absent"], ["location", "absent"]),
        (["contacts", "--resource", "r", "--product-transaction", "absent"], ["product_transaction", "absent"]),
        (["contacts", "--resource", "r", "--serializer", "absent"], ["serializer", "absent"]),
        (["contacts", "--resource", "r", "--serializer", "pg_backend_pid"], ["serializer", "Declare it as"]),
        (["contacts", "--resource", "r", "--columns", "id,absent"], ["columns", "absent"]),
        (["contacts", "--resource", "r", "--columns", ""], ["columns must name one column or more."]),
        (["contacts", "--resource", "r", "--condition", "absent = 1"], ["condition", "absent", "one boolean"]),
        (["keyless", "--resource", "r"], ["keyless has no key", "Add one"]),
        (["seen", "--resource", "r"], ["not an ordinary or partitioned table", "Attach the tables"]),
        (["outbox.events", "--resource", "r"], ["belongs to the outbox"]),
        (["contacts"], ["--resource"]),
    ],
)
def test_what_can_not_be_attached_is_one_message(
    db: str, conn: psycopg.Connection, arguments: list[str], words: list[str]
) -> None:
    """It exits 2, with what the database says, and attaches nothing."""
    conn.execute(CONTACTS)
    conn.execute("create table keyless (id int)")
    conn.execute("create view seen as select 1 as id")
    done = outbox(db, "attach", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert conn.execute("select count(*) from outbox.attachments").fetchone() == (0,)


def test_who_does_not_own_the_table_is_told_so(db: str, conn: psycopg.Connection) -> None:
    """The database's refusal is the message, and exits 1."""
    conn.execute(CONTACTS)
    with role(conn, db) as (guest, dsn):
        conn.execute(f'grant usage on schema outbox to "{guest}"'.encode())
        conn.execute(f'grant select on outbox.migrations to "{guest}"'.encode())
        done = outbox(dsn, "detach", "contacts")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "Error: permission denied for function detach.\n"
