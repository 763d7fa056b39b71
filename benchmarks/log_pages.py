"""How long a page of 50 postback logs takes over HTTP with 10,000 tries in the history and with 10,000,000.

`python -m benchmarks.log_pages [tries] [requests]`. The two take turns, request by request, on one PostgreSQL; what
counts is the ratio of their p99. The small one has the same configs, locations and days: only fewer rows.
"""

import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import psycopg

from benchmarks import stage
from outbox.cli.options import run_async
from outbox.demo.embedded import EmbeddedPostgres
from outbox.postgres import users
from outbox.postgres.migrations import migrate

SMALL = 10_000
WARM_UP = 4
LOCATION = "location-3"
LOCATIONS, CONFIGS_OF_EACH, IDLE_CONFIGS = 200, 2, 20
DAYS = 20

_CONFIGS = """
insert into outbox.postback_configs (location_id, resource, url, number_of_attempts)
select 'location-' || n %% %(locations)s, 'contact', 'http://127.0.0.1:9/' || n, 3
from generate_series(0, %(locations)s * %(each)s - 1) as n
union all
select 'idle-' || n, 'contact', 'http://127.0.0.1:9/idle', 3 from generate_series(1, %(idle)s) as n
"""
_PARTITION = """
create table outbox.{table}_{day:%Y%m%d} partition of outbox.{table} for values from ('{day}+0') to ('{following}+0')
"""
# Four events of each record, a few large locations and many small ones. The id is made as the routing makes it.
_EVENTS = """
insert into outbox.events (id, created_at, type, resource, resource_id, location_id, data)
select
    (
        lpad(to_hex(i >> 12), 12, '0') || '8' || lpad(to_hex(i & 4095), 3, '0')
        || '-8' || substr(md5(i::text), 2, 3) || '-' || substr(md5(i::text), 5, 12)
    )::uuid,
    now() - make_interval(days => %(days)s) * (1 - i::float8 / %(events)s), 'UPDATE', 'contact',
    i::bigint * 7919 %% (%(events)s / 4), 'location-' || floor(%(locations)s * power(random(), 2)),
    '{{"id":"x","last_name":"Jones","first_name":"Zoë"}}'
from generate_series({first}, {last}) as i
"""
# Of a thousand deliveries ten died, five wait for their next try, and twenty were delivered by the second.
_TRIES = """
insert into outbox.attempts
    (event_id, config_id, number, at, event_created_at, duration_ms, outcome, status, error, answer)
select e.id, c.id, t.number, e.created_at + make_interval(secs => 0.02 + 300 * (t.number - 1)), e.created_at, 12,
    t.outcome, case when t.outcome = 'delivered' then 200 else 503 end,
    case when t.outcome <> 'delivered' then 'status 503' end, 'ok'
from outbox.events as e
join outbox.postback_configs as c on c.location_id = e.location_id
cross join lateral (select abs(hashtextextended(e.id::text, 0)) %% 1000 as dice) as d
cross join lateral (
    select 1 as number, case when dice < 10 then 'dead' when dice < 35 then 'retry' else 'delivered' end as outcome
    union all
    select 2, 'delivered' where dice between 15 and 34
) as t
"""
_OWED = """
insert into outbox.deliveries (event_id, config_id, event_created_at, state, attempts, due_at, died_at, last_error)
select a.event_id, a.config_id, a.event_created_at, case when a.outcome = 'dead' then 'dead' else 'pending' end, 1,
    now() + interval '1 day', case when a.outcome = 'dead' then a.at end, a.error
from outbox.attempts as a
where a.outcome = 'dead' or a.outcome = 'retry' and not exists (
    select from outbox.attempts as b
    where b.event_id = a.event_id and b.config_id = a.config_id and b.number > a.number and b.at >= a.at
)
"""


def build(conn: psycopg.Connection, tries: int) -> None:
    """Fill the history of a migrated, empty database."""
    conn.execute("set synchronous_commit = off")
    conn.execute("set timezone = 'UTC'")
    conn.execute("set max_parallel_workers_per_gather = 0")
    settings = {
        "locations": LOCATIONS, "each": CONFIGS_OF_EACH, "idle": IDLE_CONFIGS, "days": DAYS,
        "events": tries // CONFIGS_OF_EACH,
    }  # fmt: skip
    conn.execute(_CONFIGS.encode(), settings)
    for table in ("events", "attempts"):
        for before in range(1, DAYS + 1):
            day, following = conn.execute(
                "select current_date - %(n)s::int, current_date - %(n)s::int + 1", {"n": before}
            ).fetchone() or (None, None)
            conn.execute(_PARTITION.format(table=table, day=day, following=following).encode())
    for first in range(0, settings["events"], 250_000):
        last = min(first + 250_000, settings["events"]) - 1
        conn.execute(_EVENTS.format(first=first, last=last).encode(), settings)
    conn.execute(_TRIES.encode(), settings)
    conn.execute(_OWED.encode())
    conn.execute("vacuum analyze")


class Api:
    """`outbox serve` on one database in a process of its own, and a kept-alive connection to it."""

    def __init__(self, dsn: str) -> None:
        self._port = stage.free_port()
        self._process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "outbox", "serve", "--listen", f"127.0.0.1:{self._port}"],
            env=os.environ | {"OUTBOX_DSN": dsn},
            stderr=subprocess.DEVNULL,
        )
        stage.wait_for(self._port)
        self._connection = http.client.HTTPConnection("127.0.0.1", self._port)
        self._operator = run_async(_new_user(dsn, None))
        self._local = run_async(_new_user(dsn, [LOCATION]))
        with psycopg.connect(dsn) as conn:
            event = f"from outbox.events where location_id = '{LOCATION}' order by id limit 1 offset 30"
            [(record, changelog)] = conn.execute(f"select resource_id, id {event}").fetchall()
            configs = "select id from outbox.postback_configs where location_id = %s limit 1"
            [(config,)] = conn.execute(configs, [LOCATION]).fetchall()
            [(idle,)] = conn.execute(configs, ["idle-1"]).fetchall()
        # How deep: places all over the history, as a walk would have reached them.
        depths = [int(time.time()) - 86_400 * DAYS * share // 10 for share in (2, 4, 6, 8)]
        self.kinds: dict[str, list[tuple[bool, dict[str, str]]]] = {
            "all, first page": [(True, {})],
            "all, first page, by state_ts": [(True, {"sort": "-state_ts"})],
            "all, deep in the walk": [(True, {"after": self._cursor(depth, "-created_ts")}) for depth in depths],
            "all, deep, by state_ts": [
                (True, {"sort": "-state_ts", "after": self._cursor(depth, "-state_ts")}) for depth in depths
            ],
            "one config": [(True, {"postback_config_id": str(config)})],
            "one config, deep": [
                (True, {"postback_config_id": str(config), "after": self._cursor(depth, "-created_ts")})
                for depth in depths
            ],
            "a config without logs": [(True, {"postback_config_id": str(idle)})],
            "one record": [(True, {"model_id": record})],
            "one event": [(True, {"changelog_id": str(changelog)})],
            "status dead": [(True, {"postback_status_id": "4"})],
            "status delivered": [(True, {"postback_status_id": "3"})],
            "a resource without logs": [(True, {"model": "Tag"})],
            "a user of one location": [(False, {})],
            "a user of one location, deep": [(False, {"after": self._cursor(d, "-created_ts")}) for d in depths],
        }

    def get(self, query: dict[str, str], *, operator: bool = True) -> tuple[float, Any]:
        """Ask for a page; return the seconds and the answer."""
        began = time.perf_counter()
        self._connection.request(
            "GET", "/v2/postbacklogs?" + urlencode(query), headers=self._operator if operator else self._local
        )
        answer = self._connection.getresponse()
        body = answer.read()
        spent = time.perf_counter() - began
        if answer.status != 200:
            raise RuntimeError(f"{query}: {answer.status} {body[:300]!r}")
        return spent, json.loads(body)

    def _cursor(self, before: int, sort: str) -> str:
        field = sort.removeprefix("-")
        _, page = self.get({"sort": sort, field: f"<{before}"})
        return parse_qs(urlsplit(page["meta"]["pagination"]["links"]["next"]["href"]).query)["after"][0]

    def close(self) -> None:
        """End it."""
        self._connection.close()
        self._process.terminate()
        self._process.wait()


def measure(tries: int = 10_000_000, requests: int = 200) -> None:
    """Build both histories, measure and record."""
    settings = {"max_wal_size": "16GB", "shared_buffers": "1GB", "maintenance_work_mem": "256MB"}
    with EmbeddedPostgres(settings=settings) as server:
        dsns = []
        for count in (SMALL, tries):
            with psycopg.connect(server.dsn, autocommit=True) as conn:
                conn.execute(f"create database tries_{count}".encode())
            dsn = server.dsn.replace("/postgres?", f"/tries_{count}?")
            run_async(migrate(dsn))
            with psycopg.connect(dsn, autocommit=True) as conn:
                build(conn, count)
            dsns.append(dsn)
        compare(dsns, tries, requests)


def compare(dsns: list[str], tries: int, requests: int) -> None:
    """Ask the small and the large database in turn, and record."""
    figures: dict[str, Any] = {}
    apis = [Api(dsn) for dsn in dsns]
    for kind in apis[0].kinds:
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(-WARM_UP, requests):
            for api, spent in zip(apis, times, strict=True):
                asked = api.kinds[kind]
                operator, query = asked[number % len(asked)]
                seconds, _ = api.get(query, operator=operator)
                if number >= 0:
                    spent.append(seconds)
        late = [sorted(spent)[int(len(spent) * 0.99) - 1] for spent in times]
        figures[f"{kind}: p99 ms, {SMALL:,}"] = late[0] * 1000
        figures[f"{kind}: p99 ms, {tries:,}"] = late[1] * 1000
        figures[f"{kind}: ratio of p99"] = late[1] / late[0]
        figures[f"{kind}: ratio of medians"] = statistics.median(times[1]) / statistics.median(times[0])
    for api in apis:
        api.close()
    figures["greatest ratio of p99"] = max(value for name, value in figures.items() if name.endswith("ratio of p99"))
    stage.record(
        "log_pages", figures,
        {"tries": tries, "requests of each kind": requests, "configs": LOCATIONS * CONFIGS_OF_EACH + IDLE_CONFIGS,
         "locations": LOCATIONS, "days": DAYS, "rows of a page": 50},
    )  # fmt: skip


async def _new_user(dsn: str, locations: list[str] | None) -> dict[str, str]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        user, key = await users.add(conn, "benchmark", locations)
    return {"user-id": str(user.id), "user-api-key": key}


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
