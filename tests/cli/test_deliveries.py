"""`outbox deliveries` shows, and `outbox replay` repeats, what was chosen, and says what it did not understand."""

import json
from uuid import UUID, uuid4

import psycopg
import pytest

from outbox.core.model import Dead, Delivered
from outbox.postgres.history import DeliveryKey
from tests.tried import add_config, attach_contacts, claim, outbox, try_all


@pytest.fixture(autouse=True)
def _contacts(conn: psycopg.Connection) -> None:
    attach_contacts(conn)


@pytest.fixture
async def tried(conn: psycopg.Connection, dconn: psycopg.AsyncConnection) -> dict[str, DeliveryKey]:
    """A delivered and a dead delivery of one config."""
    add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'Zoë')")
    [delivered] = await try_all(dconn, Delivered(), b"thanks")
    conn.execute("insert into contacts values (2, 'L', E'\\u009b2J')")
    [dead] = await try_all(dconn, Dead("status 500"), b"\x1b[2Jno")
    return {
        "delivered": DeliveryKey(delivered.event_id, UUID(delivered.config_id)),
        "dead": DeliveryKey(dead.event_id, UUID(dead.config_id)),
    }


def listed(db: str, *arguments: str) -> list[str]:
    done = outbox(db, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return [each["id"] for each in json.loads(done.stdout)]


def test_a_list_is_filtered_and_the_default(db: str, tried: dict[str, DeliveryKey]) -> None:
    """`deliveries` is `deliveries list`; each filter narrows it; ages and times are understood."""
    delivered, dead = str(tried["delivered"]), str(tried["dead"])
    assert listed(db, "deliveries") == listed(db, "deliveries", "list") == [dead, delivered]
    assert listed(db, "deliveries", "--state", "dead") == [dead]
    assert listed(db, "deliveries", "list", "--state", "dead", "--state", "delivered") == [dead, delivered]
    assert listed(db, "deliveries", "--config", str(tried["dead"].config_id), "--limit", "1") == [dead]
    assert listed(db, "deliveries", "--event", str(tried["delivered"].event_id)) == [delivered]
    assert listed(db, "deliveries", "--record", "2", "--resource", "contact") == [dead]
    assert listed(db, "deliveries", "--since", "1h", "--until", "2999-01-01") == [dead, delivered]
    assert listed(db, "deliveries", "--until", "15m") == []
    assert listed(db, "deliveries", "--since", "999999999d") == [dead, delivered]


def test_people_see_a_line_for_each_delivery(db: str, tried: dict[str, DeliveryKey]) -> None:
    """The identity that `show` and `replay` take, the state, the record, and why."""
    done = outbox(db, "deliveries")
    assert (done.returncode, done.stderr) == (0, "")
    _, dead, delivered = done.stdout.splitlines()
    for word in (str(tried["dead"]), "dead", "contact 2", "status 500"):
        assert word in dead
    for word in (str(tried["delivered"]), "delivered", "contact 1"):
        assert word in delivered
    assert outbox(db, "deliveries", "--record", "3").stdout == "No deliveries.\n"


def test_show_has_the_data_and_every_try(db: str, tried: dict[str, DeliveryKey]) -> None:
    """JSON has the frozen bytes as they are; a terminal gets nothing that it would obey."""
    shown = json.loads(outbox(db, "deliveries", "show", str(tried["delivered"]), "--json").stdout)
    assert shown["data"] == '{"id":1,"location_id":"L","name":"Zoë"}'
    assert (shown["state"], shown["attempts"], shown["in_progress"]) == ("delivered", 1, False)
    assert [(each["number"], each["status"], each["answer"]) for each in shown["tries"]] == [(1, 200, "thanks")]
    done = outbox(db, "deliveries", "show", str(tried["dead"]))
    assert (done.returncode, done.stderr) == (0, "")
    assert not {"\x1b", "\x9b"} & set(done.stdout)
    assert r"\x1b[2Jno" in done.stdout
    assert r'"name":"\x9b2J"' in done.stdout


async def test_a_replay_says_how_many(db: str, tried: dict[str, DeliveryKey], dconn: psycopg.AsyncConnection) -> None:
    """A dry run says it first; without a state only dead ones are meant, but a named delivery or event is, in any."""
    config, event = str(tried["dead"].config_id), str(tried["delivered"].event_id)
    assert outbox(db, "replay", "--config", config, "--dry-run").stdout == "1 delivery would be replayed.\n"
    assert outbox(db, "replay", "--event", event, "--dry-run").stdout == "1 delivery would be replayed.\n"
    assert await claim(dconn) == []
    assert outbox(db, "replay", "--config", config).stdout == "Replayed 1 delivery.\n"
    assert outbox(db, "replay", "--config", config).stdout == (
        "Replayed 0 deliveries.\nOnly dead ones were looked for; others: --state delivered.\n"
    )
    done = outbox(db, "replay", "--delivery", str(tried["delivered"]), "--json")
    assert {"replayed": 1, "dry_run": False, "interrupted": False}.items() <= json.loads(done.stdout).items()
    assert outbox(db, "replay", "--delivery", str(tried["delivered"])).stdout == "Replayed 0 deliveries.\n"
    assert [(each.attempt, each.attempts_uncounted) for each in await claim(dconn)] == [(2, 1), (2, 1)]


ID = f"{UUID(int=1)}.{UUID(int=2)}"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["replay"], ["--delivery", "--event", "--config", "--record", "--state", "--since", "--until"]),
        (["replay", "--dry-run"], ["--delivery"]),
        (["replay", "--state", "delivered"], ["whole history", "--since"]),
        (["replay", "--state", "delivered", "--until", "1h"], ["whole history", "--since"]),
        (["replay", "--state", "pending"], ["pending", "dead", "delivered"]),
        (["replay", "--delivery", ID, "--event", str(UUID(int=1))], ["--delivery", "--event"]),
        (["replay", "--delivery", "nonsense"], ["EVENT_ID.CONFIG_ID"]),
        (["replay", "--resource", "contact"], ["--record"]),
        (["replay", "--event", "nonsense"], ["nonsense", "UUID"]),
        (["deliveries", "--since", "yesterday"], ["'yesterday'", "15m", "2026-01-31T12:00:00Z"]),
        (["deliveries", "--since", "15"], ["'15'", "15m"]),
        (["deliveries", "--state", "lost"], ["lost", "pending", "dead", "delivered"]),
        (["deliveries", "--limit", "0"], ["1<=x<=10000"]),
        (["deliveries", "show", "nonsense"], ["EVENT_ID.CONFIG_ID"]),
    ],
)
def test_what_makes_no_sense_exits_2_and_says_what_is_accepted(db: str, command: list[str], words: list[str]) -> None:
    """Nothing is shown or changed."""
    done = outbox(db, *command)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("command", [["deliveries", "show"], ["replay", "--delivery"]])
def test_a_delivery_that_never_was_exits_1(db: str, command: list[str]) -> None:
    """It is not the same as nothing to do."""
    key = f"{uuid4()}.{uuid4()}"
    done = outbox(db, *command, key)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: There is no delivery {key}: neither owed nor in the history.\n"


@pytest.mark.parametrize("command", ["deliveries list", "replay"])
def test_a_period_that_ends_before_it_begins_is_wrong_use(db: str, command: str) -> None:
    """None of what was meant would be found, and that looks like none there is."""
    done = outbox(db, *command.split(), "--since", "1h", "--until", "2h")
    assert (done.returncode, done.stdout, "--since must be before --until" in done.stderr) == (2, "", True)
