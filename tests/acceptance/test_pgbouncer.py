"""Behind PgBouncer in transaction mode, with fewer sessions than connections, everything works but LISTEN."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest

from outbox.postgres import routing
from outbox.postgres.pool import Link
from outbox.settings import Pooling, Settings
from tests.apis import new_user, serving
from tests.daemons import (
    LOOPBACK,
    add_config,
    add_contacts,
    attach_contacts,
    daemon_process,
    doorbell_is_up,
    eventually_true,
    make_due,
    owed,
)
from tests.pgbouncer import PgBouncer, needs_pgbouncer, pgbouncer
from tests.receiver import Gate, Receiver, Status
from tests.servers import StartServer
from tests.tried import outbox

pytestmark = needs_pgbouncer


@pytest.fixture
def bouncer(db: str) -> Iterator[PgBouncer]:
    """A PgBouncer with two sessions before the test's database."""
    with pgbouncer(db) as started:
        yield started


def left_in_sessions(dsn: str, count: int = 2) -> list[tuple[object, ...]]:
    """Return what is not as a new session would have it, in each of the pooler's sessions."""
    with ExitStack() as ends:
        # All at once, each in a transaction: no two can be given the same session.
        conns = [ends.enter_context(psycopg.connect(dsn, prepare_threshold=None)) for _ in range(count)]
        found = []
        for conn in conns:
            row = conn.execute(
                """
                select pg_backend_pid(),
                    (select array_agg(name) from pg_settings where source = 'session' and name in (
                        'jit', 'plan_cache_mode', 'enable_seqscan', 'enable_hashjoin', 'enable_mergejoin',
                        'statement_timeout', 'lock_timeout', 'search_path', 'role')),
                    (select array_agg(name) from pg_prepared_statements),
                    (select array_agg(name) from pg_cursors where is_holdable),
                    (select array_agg(c) from pg_listening_channels() as c),
                    (select array_agg(objid) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
                    (select array_agg(relname) from pg_class where pg_my_temp_schema() = relnamespace)
                """
            ).fetchone()
            assert row is not None
            found.append(row)
        assert len({row[0] for row in found}) == count
        return [each[1:] for each in found if any(each[1:])]


def test_the_schema_is_installed_and_tables_are_attached_through_it(empty_db: str) -> None:
    """migrate, its check, attach, detach and the undo of nothing: each command as without a pooler."""
    with psycopg.connect(empty_db, autocommit=True) as conn, pgbouncer(empty_db) as bouncer:
        assert outbox(bouncer.dsn, "migrate", "--check").returncode == 1
        migrators = [
            subprocess.Popen(
                [sys.executable, "-m", "outbox", "migrate", "--dsn", bouncer.dsn],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for _ in range(3)
        ]  # fmt: skip
        for each in migrators:
            _, complaints = each.communicate(timeout=60)
            assert (each.returncode, complaints) == (0, b"")
        assert outbox(bouncer.dsn, "migrate").stdout == "Nothing to do: the schema is up to date.\n"
        assert outbox(bouncer.dsn, "migrate", "--check").returncode == 0
        conn.execute("create table contacts (id int primary key, location_id text)")
        assert outbox(bouncer.dsn, "attach", "contacts", "--resource", "contact").stderr == ""
        with psycopg.connect(bouncer.dsn, prepare_threshold=None) as writer:
            writer.execute("insert into contacts values (1, 'L')")
        assert conn.execute("select resource_id from outbox.outbox").fetchall() == [("1",)]
        assert outbox(bouncer.dsn, "detach", "contacts").stdout == "Detached contacts.\n"
        assert left_in_sessions(bouncer.dsn) == []


def test_a_daemon_delivers_retries_and_drains_with_one_warning(conn: psycopg.Connection, bouncer: PgBouncer) -> None:
    """All arrives by polling; what LISTEN can not do is said once, also after connections broke."""
    attach_contacts(conn)
    gate = Gate()
    with Receiver() as receiver:
        receiver.answer("/", *[Status(500)] * 5, Status(200))
        add_config(conn, receiver.url_for("/"), number_of_attempts=2)
        with daemon_process(bouncer.dsn) as daemon:
            [warning] = daemon.wait_for_event("listen.skipped")
            assert warning["level"] == "warning"
            add_contacts(conn, 1, 300)
            receiver.wait_for(300)
            eventually_true(lambda: owed(conn) == [("pending", 1, False)] * 5)
            make_due(conn)
            receiver.wait_for(305)
            eventually_true(lambda: owed(conn) == [])
            bouncer.stop()
            daemon.wait_for_event("database.lost")
            bouncer.start()
            daemon.wait_for_event("database.returned")
            receiver.answer("/", gate)
            add_contacts(conn, 1000, 1)
            eventually_true(lambda: gate.waiting == 1)
            daemon.process.terminate()
            daemon.wait_for_event("daemon.stopping")
            gate.open()
            assert daemon.process.wait(timeout=30) == 0
            assert len(daemon.events("listen.skipped")) == 1
            assert len(daemon.events("daemon.drained")) == 1
            assert daemon.events("housekeeping.failed") == []
        assert owed(conn) == []
        seen = Counter(each.data["id"] for each in receiver.requests)
        assert (len(seen), sorted(seen.values())[-6:]) == (301, [1, 2, 2, 2, 2, 2])
    assert not doorbell_is_up(conn), "a bell that nobody hears"
    assert left_in_sessions(bouncer.dsn) == []


def test_a_killed_daemon_is_taken_over_from(conn: psycopg.Connection, bouncer: PgBouncer) -> None:
    """What it had leased falls due by itself, and its dead connections keep nobody's session."""
    attach_contacts(conn)
    with Receiver() as receiver:
        receiver.answer("/", Status(200, delay=60), Status(200))
        add_config(conn, receiver.url_for("/"))
        with daemon_process(bouncer.dsn, request_timeout="1") as daemon:
            daemon.wait_for_event("daemon.started")
            add_contacts(conn, 1, 1)
            receiver.wait_for(1)
            daemon.process.kill()
            daemon.process.wait()
        assert owed(conn) == [("pending", 1, True)]
        make_due(conn)
        with daemon_process(bouncer.dsn) as daemon:
            receiver.wait_for(2)
            eventually_true(lambda: not owed(conn))
            assert daemon.stop() == 0


def test_a_database_that_restarts_behind_it_is_waited_for(own_server: StartServer) -> None:
    """PgBouncer breaks connections or holds statements back; either way work goes on once the database is there."""
    server = own_server()
    assert outbox(server.dsn, "migrate").returncode == 0
    with Receiver() as receiver, pgbouncer(server.dsn) as bouncer:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            attach_contacts(conn)
            add_config(conn, receiver.url)
        with daemon_process(bouncer.dsn) as daemon:
            daemon.wait_for_event("daemon.started")
            server.restart("immediate")
            with psycopg.connect(server.dsn, autocommit=True) as conn:
                add_contacts(conn, 1, 5)
                receiver.wait_for(5)
                eventually_true(lambda: not owed(conn))
            daemon.wait_for_event("listen.skipped")  # it may have to try again, after the work is done
            assert len(daemon.events("database.lost")) <= 1
            assert len(daemon.events("listen.skipped")) == 1
            assert daemon.stop() == 0


def test_two_daemons_share_two_sessions(conn: psycopg.Connection, bouncer: PgBouncer) -> None:
    """Eight connections on two sessions: each event arrives once."""
    attach_contacts(conn)
    with Receiver() as receiver:
        for _ in range(3):
            add_config(conn, receiver.url)
        with daemon_process(bouncer.dsn) as one, daemon_process(bouncer.dsn) as other:
            for daemon in (one, other):
                daemon.wait_for_event("daemon.started")
            for first in range(0, 1000, 50):
                add_contacts(conn, first, 50)
            receiver.wait_for(3000)
            eventually_true(lambda: not owed(conn))
            assert (one.stop(), other.stop()) == (0, 0)
        assert set(Counter(each.data["id"] for each in receiver.requests).values()) == {3}
    assert left_in_sessions(bouncer.dsn) == []


async def test_the_api_and_the_commands_work_through_it(conn: psycopg.Connection, db: str, bouncer: PgBouncer) -> None:
    """Configs are edited, logs read and replayed over HTTP; status, deliveries and replay on the command line."""
    attach_contacts(conn)
    headers = await new_user(db, "L")
    with Receiver() as receiver:
        async with serving(Settings(dsn=bouncer.dsn, allow_networks=LOOPBACK)) as client:
            config = {"location_id": "L", "resource": "contact", "url": receiver.url}
            made = await client.post("/v2/postbackconfigs", json={"postbackconfig": config}, headers=headers)
            assert made.status == 201
            address = f"/v2/postbackconfigs/{(await made.json())['postbackconfig']['id']}"
            # Often enough for psycopg to have prepared the statement.
            for attempts in range(1, 6):
                change = {"postbackconfig": {"number_of_attempts": attempts}}
                changed = await client.put(address, json=change, headers=headers)
                assert (await changed.json())["postbackconfig"]["number_of_attempts"] == attempts
                assert (await client.get("/v2/postbackconfigs", headers=headers)).status == 200
            refused = await client.put(address, json={"postbackconfig": {"url": "no"}}, headers=headers)
            assert refused.status == 422
            add_contacts(conn, 1, 3)
            with daemon_process(bouncer.dsn, "--until-empty") as daemon:
                assert daemon.process.wait(timeout=30) == 0
            for _ in range(6):
                logs = await (await client.get("/v2/postbacklogs", headers=headers)).json()
                assert [each["postback_status_id"] for each in logs["postbacklogs"]] == [3, 3, 3]
        assert "pending         0" in outbox(bouncer.dsn, "status").stdout
        looked = json.loads(outbox(bouncer.dsn, "top", "--json").stdout)
        assert [each["p95_ms"] is not None for each in looked["configs"]] == [True]
        assert outbox(bouncer.dsn, "deliveries", "list", "--json").stdout.count('"delivered"') == 3
        replayed = outbox(bouncer.dsn, "replay", "--record", "1", "--state", "delivered")
        assert (replayed.returncode, len(owed(conn))) == (0, 1)
        with daemon_process(bouncer.dsn, "--until-empty") as daemon:
            assert daemon.process.wait(timeout=30) == 0
        assert Counter(each.data["id"] for each in receiver.requests) == {1: 2, 2: 1, 3: 1}
    assert left_in_sessions(bouncer.dsn) == []


def test_in_session_mode_the_doorbell_is_heard(conn: psycopg.Connection, db: str) -> None:
    """OUTBOX_POOLING=session: a connection is a session's again, and the daemon is woken."""
    attach_contacts(conn)
    with Receiver() as receiver, pgbouncer(db, mode="session", pool_size=10) as bouncer:
        add_config(conn, receiver.url)
        with daemon_process(bouncer.dsn, pooling="session", poll_interval="1h") as daemon:
            eventually_true(lambda: doorbell_is_up(conn))
            add_contacts(conn, 1, 1)
            receiver.wait_for(1)
            assert daemon.events("listen.skipped") == []
            assert daemon.stop() == 0


def test_the_doctor_leaves_nothing_in_a_session_that_is_lent(
    conn: psycopg.Connection, bouncer: PgBouncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It meets the pooler as the daemon does: noticed, or told of; it makes all checks and says who does not listen."""
    attach_contacts(conn)
    for pooling in ("auto", "transaction"):
        monkeypatch.setenv("OUTBOX_POOLING", pooling)
        found = json.loads(outbox(bouncer.dsn, "doctor", "--json").stdout)["findings"]
        [listen] = [each["message"] for each in found if each["check"] == "listen"]
        assert "the daemon does not listen" in listen
        assert [each for each in found if each["message"].startswith("Could not be checked")] == []
        assert left_in_sessions(bouncer.dsn) == []


def test_in_session_mode_the_doctor_hears(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the daemon does with OUTBOX_POOLING=session; without it neither of them tries."""
    with pgbouncer(db, mode="session", pool_size=10) as bouncer:
        for pooling, level in (("session", "ok"), ("auto", "warning")):
            monkeypatch.setenv("OUTBOX_POOLING", pooling)
            found = json.loads(outbox(bouncer.dsn, "doctor", "--json").stdout)["findings"]
            assert [each["level"] for each in found if each["check"] == "listen"] == [level]


@pytest.mark.parametrize("pooling", [Pooling.AUTO, Pooling.TRANSACTION])
async def test_each_statement_brings_its_settings(bouncer: PgBouncer, pooling: Pooling) -> None:
    """The queue's plans are those of a direct connection, a timeout holds, and a failure leaves no transaction open."""
    link = Link(bouncer.dsn, "test", pooling=pooling)
    try:
        conn = await link.connection()
        assert link.is_pooled
        for _ in range(10):
            asked = "select current_setting('plan_cache_mode'), current_setting('enable_seqscan'), %s::int"
            row = await (await conn.execute(asked.encode(), [1], binary=True)).fetchone()
            assert row == ("force_generic_plan", "off", 1)
        assert (await routing.route(conn, low=0, rows=1, slots=1, room=1, rooms={}, lease=1)).rows == 0
        with pytest.raises(psycopg.errors.DivisionByZero):
            await conn.execute("select 1 / %s", [0])
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    finally:
        await link.drop()
    link = Link(bouncer.dsn, "test", settings={"statement_timeout": "50ms"}, pooling=pooling)
    try:
        conn = await link.connection()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await conn.execute("select pg_sleep(%s)", [30])
    finally:
        await link.drop()
    assert left_in_sessions(bouncer.dsn) == []
