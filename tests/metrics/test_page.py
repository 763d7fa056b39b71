"""The page: its figures of the database, its formats, its bounds, and that the document tells all of it."""

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psycopg
import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from outbox.core.tally import GivenBack, Tally
from outbox.metrics import page
from outbox.metrics.debt import SHARE, Debt, DebtWatch
from outbox.metrics.families import FAMILIES, OF_A_PROCESS, OF_DISPATCHING, OF_THE_DATABASE
from outbox.metrics.reading import Readings, of_tally, together
from outbox.settings import Settings
from tests.apis import serving
from tests.daemons import add_config, eventually
from tests.scrapes import Samples, of_families, openmetrics_families, samples
from tests.servers import role
from tests.tried import outbox

ROOT = Path(__file__).parents[2]
Client = TestClient[web.Request, web.Application]


def owe(conn: psycopg.Connection, count: int, *, state: str = "pending", due_in: float = -60.0) -> str:
    """Let a new config owe so many deliveries, due so many seconds from now; returns its id."""
    config_id = add_config(conn, "http://127.0.0.1:9/")
    conn.execute(
        "insert into outbox.deliveries (event_id, config_id, event_created_at, state, died_at, due_at) "
        "select gen_random_uuid(), %s, now(), %s, case when %s then now() end, now() + make_interval(secs => %s) "
        "from generate_series(1, %s)",
        [config_id, state, state == "dead", due_in, count],
    )
    return str(config_id)


@contextlib.asynccontextmanager
async def opened(dsn: str, readings: Callable[[], Readings] | None = None) -> AsyncIterator[Client]:
    """Serve a page that names three configs, and give a client of it. Its first count begins at once."""
    app = web.Application()
    page.add_page(app, dsn, worst=3, readings=readings)
    async with TestClient(TestServer(app)) as client:
        yield client


async def page_with_figures(client: Client, accept: str = "") -> ClientResponse:
    """Scrape until the first count has ended."""
    async with asyncio.timeout(30):
        while True:
            answer = await client.get("/metrics", headers={"Accept": accept})
            if "\noutbox_pending " in await answer.text():
                return answer


async def read(client: Client) -> Samples:
    """Return what a page with figures says."""
    return samples(await (await page_with_figures(client)).text())


async def newer_than(known: Debt | None, watch: DebtWatch) -> Debt:
    """Ask until there are other figures."""
    async with asyncio.timeout(30):
        while True:
            found = await watch.debt()
            if found is not None and found is not known:
                return found
            await asyncio.sleep(0.01)


async def test_the_figures_are_those_of_status(conn: psycopg.Connection, db: str) -> None:
    """Each total is what `outbox status` counts exactly."""
    owe(conn, 5)
    owe(conn, 4, due_in=3600)
    owe(conn, 3, state="dead")
    paused = owe(conn, 2)
    conn.execute("update outbox.postback_configs set paused_at = now() where id = %s", [paused])
    conn.execute(
        "insert into outbox.outbox (type, resource, resource_id, data) values ('CREATE', 'contact', '1', '{}')"
    )
    async with opened(db) as client:
        found = await read(client)
    told = json.loads(outbox(db, "status", "--json").stdout)
    for name in ("unrouted", "pending", "due", "held", "dead"):
        assert found[f"outbox_{name}",] == told[name]
    assert (told["unrouted"], told["pending"], told["due"], told["held"], told["dead"]) == (1, 11, 5, 2, 3)
    assert found["outbox_configs",] == 4
    assert 60 <= found["outbox_oldest_due_seconds",] <= told["oldest_due_s"]


async def test_the_worst_by_either_measure_are_named(conn: psycopg.Connection, db: str) -> None:
    """First the oldest due and the most dead, in turn; who is due for a moment only is nobody's worst."""
    owe(conn, 50, due_in=-0.5)
    late = owe(conn, 1, due_in=-3600)
    owe(conn, 1, due_in=-1200)
    second = owe(conn, 1, due_in=-2400)
    dying = owe(conn, 9, state="dead")
    died = owe(conn, 8, state="dead")
    async with opened(db) as client:
        found = await read(client)
    named = {labels[1] for labels in found if labels[0] == "outbox_config_oldest_due_seconds"}
    assert named in ({late, dying, second}, {late, dying, died})
    for name in ("pending", "due", "dead"):
        shown = [value for labels, value in found.items() if labels[0] == f"outbox_config_{name}"]
        assert sum(shown) == found[f"outbox_{name}",]


async def test_a_thousand_configs_are_few_series(conn: psycopg.Connection, db: str) -> None:
    """Labels are bounded: no more configs are named than the setting says, and no URL is in the page."""
    conn.execute(
        "with c as (insert into outbox.postback_configs (location_id, resource, url) "
        "select 'L', 'contact', 'http://subscriber.example/' || i from generate_series(1, 1000) i returning id) "
        "insert into outbox.deliveries (event_id, config_id, event_created_at, due_at) "
        "select gen_random_uuid(), id, now(), now() - interval '1 minute' from c"
    )
    async with opened(db) as client:
        text = await (await page_with_figures(client)).text()
    found = samples(text)
    assert found["outbox_pending",] == 1000
    assert found["outbox_config_pending", "other"] == 997
    assert len({labels[1] for labels in found if labels[0].startswith("outbox_config_")}) == 4
    assert "subscriber.example" not in text


async def test_the_debt_is_counted_once_for_all_who_ask(conn: psycopg.Connection, db: str) -> None:
    """Within the time for which figures are fresh nobody causes another count, and their age is told."""
    owe(conn, 1)
    async with opened(db) as client:
        first = await read(client)
        owe(conn, 1)
        second = await read(client)
    assert (first["outbox_pending",], second["outbox_pending",]) == (1, 1)
    assert first["outbox_figures_age_seconds",] < second["outbox_figures_age_seconds",]


async def test_a_count_that_takes_long_keeps_nobody_waiting(conn: psycopg.Connection, db: str) -> None:
    """Who asks meanwhile gets the last figures; and counting takes up one per cent of the time at most."""
    watch = DebtWatch(db, worst=3)
    try:
        owe(conn, 1)
        known = await newer_than(None, watch)
        with psycopg.connect(db) as blocker:
            blocker.execute("lock table outbox.deliveries in access exclusive mode")
            watch._next_at = 0.0  # noqa: SLF001 - the time at which a new count is allowed has come
            assert await watch.debt() is known
            assert await watch.debt() is known
        newer = await newer_than(known, watch)
        assert watch._next_at >= newer.at + newer.duration * (SHARE - 2)  # noqa: SLF001 - not seen from outside
    finally:
        await watch.close()


async def test_without_a_database_there_is_a_page_without_figures() -> None:
    """Nothing is told that is not known, but for how long it has not been: an alert goes by that."""
    async with opened("postgresql://nobody@127.0.0.1:1/none") as client:
        first, second = [samples(await (await client.get("/metrics")).text()) for _ in range(2)]
    told = {labels[0] for labels in second} & {family.name for family in OF_THE_DATABASE}
    assert told == {"outbox_figures_age_seconds"}
    assert 0 < first["outbox_figures_age_seconds",] < second["outbox_figures_age_seconds",]
    assert second["process_open_fds",] > 0


async def test_figures_that_are_refused_from_the_start_grow_old(db: str, conn: psycopg.Connection) -> None:
    """The first count never succeeds, for want of a right; once it does, the age is that of the figures."""
    with role(conn, db) as (guest, dsn):
        watch = DebtWatch(dsn, worst=3)
        try:
            with capture_logs() as lines:
                watch.start()
                await eventually(lambda: [line["event"] for line in lines] == ["figures.failed"])
            refused = watch.age
            assert await watch.debt() is None
            assert watch.age > refused > 0
            conn.execute(f'grant usage on schema outbox to "{guest}"'.encode())
            conn.execute(f'grant select on all tables in schema outbox to "{guest}"'.encode())
            watch._next_at = 0.0  # noqa: SLF001 - the time at which a new count is allowed has come
            counted = await newer_than(None, watch)
            since = time.monotonic()
            assert since - counted.at <= watch.age <= time.monotonic() - counted.at
        finally:
            await watch.close()


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text; version=1.0.0,text/plain;q=0.5", "application/openmetrics-text; version=1.0.0"),
    ],
)
async def test_the_format_is_the_one_that_is_asked_for(db: str, accept: str, content_type: str) -> None:
    """OpenMetrics for who prefers it, else the text format; both can be parsed and have the same samples."""
    async with opened(db, readings=lambda: {os.getpid(): of_tally(Tally())}) as client:
        answer = await page_with_figures(client, accept)
        text = await answer.text()
    assert answer.headers["Content-Type"].startswith(content_type)
    found = of_families(openmetrics_families(text)) if "openmetrics" in content_type else samples(text)
    assert found["outbox_attempts_total", "delivered", "2xx"] == 0
    assert found["outbox_attempt_duration_seconds_bucket", "+Inf"] == 0
    assert found["outbox_pending",] == 0
    assert found["process_cpu_seconds_total",] > 0


def test_of_several_workers_counts_are_added_and_ages_compared() -> None:
    """A sum for what adds up, histograms included; the greatest for a delay, an age and an outage."""
    one, other = Tally(), Tally()
    one.routed, other.routed = 3, 4
    one.given_back[GivenBack.EXPIRED], other.given_back[GivenBack.EXPIRED] = 5, 6
    one.durations.observe(0.002)
    other.durations.observe(0.002)
    other.durations.observe(99.0)
    whole = together(
        [
            of_tally(one) | {"outbox_outage": {"": [1.0]}, "outbox_settle_delay_seconds": {"": [7.0]}},
            of_tally(other) | {"outbox_outage": {"": [1.0]}, "outbox_settle_delay_seconds": {"": [2.0]}},
        ]
    )
    assert whole["outbox_events_routed_total"] == {"": [7]}
    assert whole["outbox_deliveries_given_back_total"] == {each: [11 * (each == "expired")] for each in GivenBack}
    assert whole["outbox_attempt_duration_seconds"][""][:3] == [pytest.approx(99.004), 0, 2]
    assert whole["outbox_attempt_duration_seconds"][""][-1] == 1
    assert whole["outbox_outage"] == {"": [1.0]}
    assert whole["outbox_settle_delay_seconds"] == {"": [7.0]}


async def test_the_api_has_the_page_without_a_sign_in(db: str) -> None:
    """`serve` tells of the database and of itself, and dispatches nothing."""
    async with serving(Settings(dsn=db), lambda app: page.add_page(app, db, worst=3)) as api:
        found = await read(api)
    assert found["outbox_pending",] == 0
    assert not {labels[0] for labels in found} & {family.name for family in OF_DISPATCHING}


def test_the_document_tells_every_name() -> None:
    """docs/metrics.md has each family with its type, labels and meaning, and no other."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*) \|$", text, re.MULTILINE)
    told = {name: (kind, labels.replace("`", ""), meaning) for name, kind, labels, meaning in rows}
    known = {family.name: (str(family.kind), ", ".join(family.labels), family.meaning) for family in FAMILIES.values()}
    processes = {
        metric.name + ("_total" if metric.type == "counter" else ""): (metric.type, "worker", metric.documentation)
        for metric in page._processes([1, 2])  # noqa: SLF001 - the names that the library gives
    }
    assert told == known | processes
    assert set(FAMILIES) == {family.name for family in (*OF_A_PROCESS, *OF_DISPATCHING, *OF_THE_DATABASE)}


@pytest.mark.parametrize("version", ["abc", "9" * 400, "1.x", "", "-1"])
async def test_a_version_that_is_none_is_no_error(db: str, version: str) -> None:
    """Whoever asks for a format in a version of his own invention gets a page."""
    async with opened(db) as client:
        answer = await client.get("/metrics", headers={"Accept": f"application/openmetrics-text; version={version}"})
        assert (answer.status, "outbox_build_info" in await answer.text()) == (200, True)
