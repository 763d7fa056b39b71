"""How long a scrape takes while 1,000,000 deliveries are owed: with nothing to do, and while a backlog is delivered.

`python -m benchmarks.metrics [pending] [backlog]`. The debt waits for its next try and belongs to 1,000 configs. A
scrape is timed by its client, from the request to the last byte of the answer, on a connection that is kept alive.
"""

import http.client
import socket
import statistics
import sys
import time
from collections.abc import Callable

import psycopg
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import stage

CONFIGS = 1000
PAUSE = 0.25
"""Seconds from one scrape to the next: much more often than a Prometheus would."""


def owe(conn: psycopg.Connection, pending: int) -> None:
    """Let the configs of another resource owe so much, all of it waiting for its next try."""
    conn.execute(
        "insert into outbox.postback_configs (location_id, resource, url) "
        "select 'L', 'other', 'http://127.0.0.1:9/' from generate_series(1, %s)",
        [CONFIGS],
    )
    conn.execute(
        "insert into outbox.deliveries (event_id, config_id, event_created_at, attempts, due_at) "
        "select gen_random_uuid(), c.id, now(), 1, now() + interval '1 day' "
        "from outbox.postback_configs as c, generate_series(1, %s) where c.resource = 'other'",
        [pending // CONFIGS],
    )


class Scraper:
    """A client that keeps its connection, as Prometheus does."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self.page = ""

    def scrape(self) -> float:
        """Scrape once; returns milliseconds."""
        began = time.monotonic()
        self._connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
        self._connection.getresponse().read()
        ended = time.monotonic()
        return (ended - began) * 1000

    def value(self, name: str) -> float:
        """Ask for one sample without labels."""
        self._connection.request("GET", "/metrics")
        page = self._connection.getresponse().read().decode()
        samples = (each for family in text_string_to_metric_families(page) for each in family.samples)
        return next((sample.value for sample in samples if sample.name == name and not sample.labels), 0.0)

    def while_(self, holds: Callable[[int], bool]) -> list[float]:
        """Scrape again and again while it holds for how many scrapes there were; returns milliseconds, sorted."""
        found: list[float] = []
        while holds(len(found)):
            found.append(self.scrape())
            time.sleep(PAUSE)
        return sorted(found)


def measure(pending: int = 1_000_000, backlog: int = 100_000) -> None:
    """Measure and record."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = int(trial.getsockname()[1])
    with stage.database() as dsn, stage.receiver() as receiver, psycopg.connect(dsn, autocommit=True) as conn:
        stage.add_config(conn, receiver.url)
        owe(conn, pending)
        with stage.daemon(dsn, "--listen", f"127.0.0.1:{port}") as daemon:
            daemon.wait_until_started()
            memory_before = daemon.memory("VmRSS")
            scraper = Scraper(port)
            first = scraper.scrape()
            while scraper.value("outbox_pending") != pending:
                time.sleep(PAUSE)
            cpu_before = daemon.cpu_seconds()
            idle = scraper.while_(lambda count: count < 120)
            cpu = daemon.cpu_seconds() - cpu_before
            counted_in = scraper.value("outbox_figures_duration_seconds")
            memory_after = daemon.memory("VmRSS")
            stage.add_contacts(conn, backlog)
            busy = scraper.while_(lambda _: receiver.ask("count") < backlog)
            memory_peak = daemon.memory()
    stage.record(
        "metrics",
        {
            "scrape, idle, median ms": statistics.median(idle),
            "scrape, idle, p95 ms": idle[int(len(idle) * 0.95)],
            "scrape, delivering, median ms": statistics.median(busy),
            "scrape, delivering, p95 ms": busy[int(len(busy) * 0.95)],
            "scrape, the first, ms": first,
            "daemon's processor time per scrape, all included, ms": cpu / len(idle) * 1000,
            "one count of the debt, in the background, ms": counted_in * 1000,
            "resident memory before the first scrape, MB": memory_before,
            "resident memory after 120 scrapes, MB": memory_after,
            "resident memory, peak MB": memory_peak,
        },
        {"pending": pending, "configs": CONFIGS, "backlog": backlog, "scrapes while delivering": len(busy)},
    )


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
