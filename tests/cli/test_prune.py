"""`outbox prune` tells what goes, and with --dry-run what would."""

import asyncio
import json

import psycopg
import pytest

from outbox.postgres.migrations import migrate
from tests.tried import outbox


@pytest.fixture
def old_day(empty_db: str) -> str:
    """A database with one event in a partition of 2001, and one of then in the default partition of tries."""
    asyncio.run(migrate(empty_db))
    with psycopg.connect(empty_db, autocommit=True) as conn:
        conn.execute(
            "create table outbox.events_20010101 partition of outbox.events "
            "for values from ('2001-01-01 00:00+00') to ('2001-01-02 00:00+00')"
        )
        conn.execute(
            "insert into outbox.events (id, created_at, type, resource, resource_id, data) "
            "values (gen_random_uuid(), '2001-01-01 12:00+00', 'CREATE', 'contact', '1', '{}')"
        )
        conn.execute(
            "insert into outbox.attempts (event_id, config_id, number, at, event_created_at, duration_ms, outcome) "
            "values (gen_random_uuid(), gen_random_uuid(), 1, '2001-01-01', '2001-01-01', 1, 'delivered')"
        )
    return empty_db


def count(dsn: str) -> tuple[object, ...] | None:
    with psycopg.connect(dsn) as conn:
        return conn.execute("select (select count(*) from outbox.events), count(*) from outbox.attempts").fetchone()


def test_a_dry_run_tells_and_the_prune_does(old_day: str) -> None:
    """Both tell the same, and only the second changes anything."""
    planned = outbox(old_day, "prune", "--dry-run")
    assert (planned.returncode, planned.stderr) == (0, "")
    assert "events_20010101  2001-01-02 00:00:00Z" in planned.stdout
    assert "to be dropped" in planned.stdout
    assert "Nothing was changed." in planned.stdout
    assert count(old_day) == (1, 1)
    done = outbox(old_day, "prune", "--retention", "30d")
    assert (done.returncode, done.stderr) == (0, "")
    assert "dropped" in done.stdout
    assert "to be dropped" not in done.stdout
    assert count(old_day) == (0, 0)
    again = outbox(old_day, "prune")
    assert "events_20010101" not in again.stdout
    assert again.returncode == 0


def test_json_has_each_partition_with_its_rows_and_bytes(old_day: str) -> None:
    """Programs get whole numbers, times in UTC, and whether it was a dry run."""
    planned, done = (outbox(old_day, "prune", "--json", *more) for more in (["--dry-run"], []))
    assert (planned.returncode, done.returncode) == (0, 0)
    report = json.loads(done.stdout)
    assert json.loads(planned.stdout)["partitions"] == report["partitions"]
    [partition] = report["partitions"]
    assert partition.pop("bytes") > 0
    assert partition == {
        "table": "events", "partition": "events_20010101", "until": "2001-01-02T00:00:00+00:00", "rows": None,
        "fate": "dropped", "kept": 0, "error": None,
    }  # fmt: skip
    assert report["default_rows"] == {"events_default": 0, "attempts_default": 1}
    assert (report["dry_run"], report["dead_deliveries"]) == (False, 0)


def test_a_prune_beside_another_one_says_so(old_day: str) -> None:
    """It fails with one message, and changes nothing."""
    with psycopg.connect(old_day) as other:
        other.execute("select pg_advisory_xact_lock(hashtextextended('outbox.housekeeping', 0))")
        done = outbox(old_day, "prune")
        assert (done.returncode, done.stdout) == (1, "")
        assert "Try again" in done.stderr
    assert count(old_day) == (1, 1)


def test_a_partition_that_can_not_go_fails_the_command(old_day: str) -> None:
    """The reason stands in its row, and the exit code is 1."""
    with psycopg.connect(old_day, autocommit=True) as conn:
        conn.execute("create view public.of_a_day as select * from outbox.events_20010101")
    done = outbox(old_day, "prune")
    assert done.returncode == 1
    assert "cannot drop table outbox.events_20010101" in done.stdout
    assert "Not pruned: events_20010101." in done.stderr


@pytest.mark.parametrize("value", ["1h", "soon", "-1", "0"])
def test_a_retention_that_is_none_is_refused(value: str) -> None:
    """Less than a day, or no time at all: usage error, before anything is connected."""
    done = outbox("postgresql://nobody@127.0.0.1:1/x", "prune", f"--retention={value}")
    assert done.returncode == 2
    assert "OUTBOX_RETENTION" in done.stderr


def test_without_the_schema_it_says_how_to_get_it(empty_db: str) -> None:
    """There is nothing to prune where nothing is installed."""
    done = outbox(empty_db, "prune")
    assert (done.returncode, done.stdout) == (1, "")
    assert "outbox migrate" in done.stderr
