"""Strict order holds under retries, several daemons, and their death at any moment: a machine of random histories.

Beside it transactions stay open that have captured little or very much, so that routes pass what they will commit.
"""

import asyncio
import contextlib
import itertools
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from outbox.postgres.replay import replay
from outbox.postgres.selection import Filter, State
from tests.daemons import DaemonProcess, add_config, daemon_process, eventually_true, owed
from tests.receiver import Receiver, Status

RECORDS = (1, 2, 3)
HELD_RECORDS = (4, 5)
"""They are changed by the transaction that is held open, and when there is none."""
MUCH = 12_000
"""So many changes that the mark of the routes does not trail behind all of them."""
LOOKS = 3
"""So many looks at what is committed behind a transaction, and the mark has passed it."""
MOST_DAEMONS = 2
HISTORIES = int(os.environ.get("OUTBOX_TEST_HISTORIES", "4"))
"""How many random histories are tried; each takes some seconds, because its daemons are real processes."""


class Order(RuleBasedStateMachine):
    """Writes, failures and deaths in any order; at the end the daemons finish and the receiver's log is judged."""

    dsn: str

    @initialize()
    def begin(self) -> None:
        """Attach a fresh table and subscribe in strict order."""
        self.stack = contextlib.ExitStack()
        self.receiver = self.stack.enter_context(Receiver(default=Status(204, delay=0.002)))
        self.conn = self.stack.enter_context(psycopg.connect(self.dsn, autocommit=True))
        self.conn.execute("truncate outbox.outbox, outbox.events, outbox.deliveries, outbox.attempts")
        self.conn.execute("truncate outbox.postback_configs, outbox.config_state")
        self.conn.execute("drop table if exists ordered")
        self.conn.execute("create table ordered (id int primary key, location_id text default 'L', version int)")
        self.conn.execute("select outbox.attach('ordered', 'contact')")
        add_config(self.conn, self.receiver.url_for("/in"), strict_order="hold", number_of_attempts=5)
        self.versions: defaultdict[int, int] = defaultdict(int)
        self.held: psycopg.Connection | None = None
        self.unwanted = 1000
        """The highest id of a record that nobody watches."""
        self.daemons: list[tuple[contextlib.ExitStack, DaemonProcess]] = []

    @rule(record=st.sampled_from(RECORDS), count=st.integers(1, 20))
    def change(self, record: int, count: int) -> None:
        """Change one record several times, a transaction each."""
        for _ in range(count):
            self.versions[record] += 1
            _write(self.conn, record, self.versions[record])

    @precondition(lambda self: self.held is None)
    @rule(captured=st.sampled_from((0, 100, MUCH)))
    def hold(self, captured: int) -> None:
        """Change some records in a transaction that stays open, and so many more that nobody wants; routes go on."""
        self.held = self.stack.enter_context(psycopg.connect(self.dsn))
        for record in HELD_RECORDS:
            _write(self.held, record, self.versions[record] + 1)
        self.held.execute(
            "insert into ordered (id, location_id) select i, 'N' from generate_series(%s::int, %s::int) as i",
            [self.unwanted + 1, self.unwanted + captured],
        )
        self.unwanted += captured
        for _ in range(LOOKS if self.daemons else 0):
            self.change(RECORDS[0], 1)
            eventually_true(self._is_routed)

    @precondition(lambda self: self.held is not None)
    @rule(commits=st.booleans(), count=st.integers(0, 3))
    def end_held(self, commits: bool, count: int) -> None:  # noqa: FBT001 - a rule's
        """End it while the next changes of its records wait for it: none of these may go before its own."""
        held, self.held = self.held, None
        assert held is not None
        for record in HELD_RECORDS:
            self.versions[record] += commits
        waiting = self.conn.info.backend_pid
        with ThreadPoolExecutor(1) as beside, held:  # whatever happens, it ends before the other is waited for
            later = beside.submit(lambda: [self.change(record, count) for record in HELD_RECORDS])
            if count:
                eventually_true(lambda: _waits(held, waiting))
            if commits:
                held.commit()
            else:
                held.rollback()
            later.result()

    @rule()
    def change_all(self) -> None:
        """Change each record in one statement."""
        for record in RECORDS:
            self.versions[record] += 1
        self.conn.execute(
            "insert into ordered (id, version) select * from unnest(%s::int[], %s::int[]) "
            "on conflict (id) do update set version = excluded.version",
            [list(RECORDS), [self.versions[record] for record in RECORDS]],
        )

    @rule(failures=st.integers(1, 4))
    def fail(self, failures: int) -> None:
        """Refuse the next few postbacks."""
        self.receiver.answer("/in", *[Status(503)] * failures, Status(204, delay=0.002))

    @precondition(lambda self: len(self.daemons) < MOST_DAEMONS)
    @rule()
    def start(self) -> None:
        """Start one more daemon."""
        stack = contextlib.ExitStack()
        daemon = stack.enter_context(daemon_process(self.dsn))
        daemon.wait_for_event("daemon.started")
        self.daemons.append((stack, daemon))

    @precondition(lambda self: self.daemons)
    @rule(arrivals=st.integers(0, 10))
    def kill(self, arrivals: int) -> None:
        """Kill the oldest daemon with no warning, when so much has arrived, or nothing more does."""
        self.time_passes()
        target = len(self.receiver.requests) + arrivals
        with contextlib.suppress(AssertionError):
            eventually_true(lambda: len(self.receiver.requests) >= target, within=0.2)
        stack, daemon = self.daemons.pop(0)
        daemon.process.kill()
        stack.close()

    @rule()
    def pause_or_resume(self) -> None:
        """Let the config wait, so that none is in order for a while, or go on."""
        self.conn.execute("update outbox.postback_configs set paused_at = case when paused_at is null then now() end")

    @rule()
    def time_passes(self) -> None:
        """Let all waits run out, and the leases too where nobody lives who holds one."""
        self.conn.execute(
            "update outbox.deliveries set due_at = now() where state = 'pending' and (not leased or %s)",
            [not self.daemons],
        )

    def teardown(self) -> None:
        """Let everything arrive, and compare what arrived with what may."""
        if not hasattr(self, "stack"):
            return
        with self.stack:
            try:
                self._judge()
            finally:
                for stack, _ in self.daemons:
                    stack.close()

    def _judge(self) -> None:
        if self.held is not None:
            self.end_held(commits=True, count=1)
        self.conn.execute("update outbox.postback_configs set paused_at = null")
        while self.daemons:
            self.kill(0)
        self.time_passes()
        self.start()
        while not self._is_empty():
            eventually_true(lambda: self._is_empty() or (self._is_routed() and self._rests()))
            self.time_passes()
            asyncio.run(_replay_the_dead(self.dsn))
        seen = defaultdict(list)
        for each in self.receiver.requests:
            seen[each.data["id"]].append(each.data["version"])
        for record, last in self.versions.items():
            assert [version for version, _ in itertools.groupby(seen[record])] == list(range(1, last + 1))

    def _is_empty(self) -> bool:
        # In this order: what is routed in between is owed then.
        return self._is_routed() and not owed(self.conn)

    def _is_routed(self) -> bool:
        return self.conn.execute("select from outbox.outbox").fetchone() is None

    def _rests(self) -> bool:
        """Tell whether all that is owed waits for its time, or is dead."""
        query = "select from outbox.deliveries where state = 'pending' and (due_at <= now() or leased)"
        return self.conn.execute(query).fetchone() is None


def _waits(conn: psycopg.Connection, pid: int) -> bool:
    """Tell whether that backend waits for the transaction of this connection."""
    query = "select pg_backend_pid() = any(pg_blocking_pids(%s))"
    return conn.execute(query, [pid]).fetchone() == (True,)


def _write(conn: psycopg.Connection, record: int, version: int) -> None:
    conn.execute(
        "insert into ordered (id, version) values (%s, %s) on conflict (id) do update set version = excluded.version",
        [record, version],
    )


async def _replay_the_dead(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await replay(conn, Filter(states=[State.DEAD]))


@pytest.mark.usefixtures("conn")
def test_order_under_retries_two_daemons_and_kill_9(db: str) -> None:
    """Of each record the receiver sees every version, in order; a version may come twice in a row, never later."""

    class Machine(Order):
        dsn = db

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
