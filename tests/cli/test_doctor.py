"""`outbox doctor` prints what it found for people and programs, and exits 1 only for a problem."""

import json
import os
import pty
import subprocess
import sys
import sysconfig
from pathlib import Path

import psycopg
import pytest

import outbox as package
from outbox.doctor.examination import CHECKS
from tests.daemons import daemon_process
from tests.servers import role
from tests.tried import add_config, attach_contacts, outbox

NOWHERE = "postgresql://127.0.0.1:1/nowhere"
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_a_sound_outbox_exits_0(db: str, conn: psycopg.Connection) -> None:
    """A warning is no failure. As JSON each finding has its check, level, message and advice."""
    attach_contacts(conn)
    with daemon_process(db) as daemon:
        daemon.wait_for_event("daemon.started")
        done = outbox(db, "doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    findings = report.pop("findings")
    assert sum(report.values()) == len(findings)
    assert report["problem"] == 0
    assert list(dict.fromkeys(each["check"] for each in findings)) == [check.name for check in CHECKS]
    assert {each["level"] for each in findings} <= {"ok", "warning"}
    by_check = {each["check"]: each for each in findings}
    assert by_check["daemons"]["level"] == "ok"
    assert by_check["capture"] == {
        "check": "capture", "level": "ok", "message": "Captured: contacts.", "advice": None,
    }  # fmt: skip


def test_a_problem_exits_1_and_says_what_to_do(db: str, conn: psycopg.Connection) -> None:
    """The columns are aligned, advice stands below, and what others wrote can not command the terminal."""
    attach_contacts(conn)
    add_config(conn)
    conn.execute("update outbox.postback_configs set url = e'http://127.0.0.1/\x1b[2J\n', is_active = false")
    conn.execute(
        "insert into outbox.deliveries values (gen_random_uuid(), (select id from outbox.postback_configs), now())"
    )
    conn.execute("alter table contacts disable trigger outbox_update")
    done = outbox(db, "doctor")
    assert (done.returncode, done.stderr) == (1, "")
    assert "\x1b" not in done.stdout
    assert r"http://127.0.0.1/\x1b[2J\n" in done.stdout
    lines = done.stdout.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("problem"))
    assert lines[place] == "problem  capture      contacts: outbox_update is disabled: no update is captured."
    assert lines[place + 1] == "                      > alter table contacts enable trigger outbox_update;"
    assert lines[-1].startswith("1 problem, ")


def test_a_role_without_rights_still_gets_a_report(db: str, conn: psycopg.Connection) -> None:
    """What can not be read is a warning, what is missing is named with its GRANT."""
    with role(conn, db) as (patient, dsn):
        done = outbox(dsn, "doctor")
    assert (done.returncode, done.stderr) == (1, "")
    assert "Could not be checked: permission denied for schema outbox" in done.stdout
    assert f'> grant usage on schema outbox to "{patient}";' in done.stdout
    assert f'> grant select, insert, update, delete on table outbox.deliveries to "{patient}";' in done.stdout


def test_a_database_that_can_not_be_reached_is_a_problem_of_the_report() -> None:
    """The rest that needs no database is told as well."""
    done = outbox(NOWHERE, "doctor")
    assert (done.returncode, done.stderr) == (1, "")
    assert [line.split()[0] for line in done.stdout.splitlines()[:4]] == ["ok", "ok", "ok", "problem"]


@pytest.mark.parametrize(
    ("settings", "url", "refusal"),
    [
        ([], "http://127.0.0.1:25/", "port 25 is not allowed"),
        (["--allow-ports", "25"], "http://127.0.0.1:25/", None),
        ([], "http://127.0.0.1/", None),
        (["--require-https", "true"], "http://127.0.0.1/", "https"),
        (["--deny-networks", "127.0.0.0/8"], "http://127.0.0.1/", "127.0.0.1"),
    ],
)
def test_destinations_are_judged_by_the_settings(
    db: str, conn: psycopg.Connection, settings: list[str], url: str, refusal: str | None
) -> None:
    """A daemon with them would judge so."""
    conn.execute("update outbox.postback_configs set url = %s where id = %s", [url, add_config(conn)])
    done = outbox(db, "doctor", "--json", "--allow-networks", "127.0.0.0/8", *settings)
    assert done.stderr == ""
    found = [each for each in json.loads(done.stdout)["findings"] if each["check"] == "subscribers"]
    assert [each["level"] for each in found] == ["ok" if refusal is None else "warning"], found
    assert (refusal or "") in found[0]["message"]


@pytest.mark.parametrize(
    ("dsn", "arguments", "word"),
    [("", [], "OUTBOX_DSN is not set"), (NOWHERE, ["--concurrency", "many"], "OUTBOX_CONCURRENCY")],
)
def test_wrong_usage_exits_2(dsn: str, arguments: list[str], word: str) -> None:
    """It is no finding."""
    done = outbox(dsn, "doctor", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert word in done.stderr


def test_the_limit_of_open_files_is_that_of_the_process() -> None:
    """A shell's ulimit is inherited, as the daemon's would be."""
    done = subprocess.run(
        ["sh", "-c", f"ulimit -n 200; exec {sys.executable} -m outbox doctor --dsn {NOWHERE} --concurrency 150"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "problem  open files  A process may open 200 files here" in done.stdout


def installed_without(folder: Path, *parts: str) -> str:
    """Make a folder of all that is installed here but these parts of OpenTelemetry; return the PYTHONPATH for it."""
    installed = Path(sysconfig.get_path("purelib"))
    for each in installed.iterdir():
        if each.name != "opentelemetry":
            (folder / each.name).symlink_to(each)
    (folder / "opentelemetry").mkdir()
    for each in (installed / "opentelemetry").iterdir():
        if each.name not in parts:
            (folder / "opentelemetry" / each.name).symlink_to(each)
    checkout = Path(package.__file__).parents[1]
    return os.pathsep.join([*([str(checkout)] if checkout != installed else []), str(folder)])


@pytest.mark.parametrize(
    ("missing", "variables", "message"),
    [
        ([], {}, None),
        (["sdk", "exporter"], {}, "OUTBOX_TRACING needs opentelemetry.exporter: install outbox with its extra `otel`."),
        (["sdk"], {}, "OUTBOX_TRACING needs opentelemetry.sdk: install outbox with its extra `otel`."),
        (
            [],
            {"OTEL_BSP_MAX_QUEUE_SIZE": "-1"},
            (
                "OUTBOX_TRACING: OpenTelemetry can not read one of its variables: "
                "max_queue_size must be a positive integer."
            ),
        ),
    ],
    ids=["all", "only the API", "no SDK", "a wrong variable"],
)
def test_spans_that_keep_a_daemon_from_starting_are_a_problem(
    db: str, tmp_path: Path, missing: list[str], variables: dict[str, str], message: str | None
) -> None:
    """The API of OpenTelemetry, which other packages bring along, is not enough; the daemon has the same words."""

    def traced(*arguments: str) -> subprocess.CompletedProcess[str]:
        # Without `site` nothing is found but what stands in the path.
        return subprocess.run(
            [sys.executable, "-S", "-m", "outbox", *arguments, "--dsn", db, "--tracing", "true"],
            env={**os.environ, **variables, "PYTHONPATH": path, "COLUMNS": "400"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    path = installed_without(tmp_path, *missing)
    daemon = traced("run", "--until-empty")
    found = [each for each in json.loads(traced("doctor", "--json").stdout)["findings"] if each["check"] == "way out"]
    if message is None:
        assert (daemon.returncode, [each["level"] for each in found]) == (0, ["ok"]), daemon.stderr
    else:
        assert (daemon.returncode, f"Error: {message}\n" in daemon.stderr) == (2, True), daemon.stderr
        assert [(each["level"], each["message"]) for each in found] == [("problem", f"No daemon starts: {message}")]


@pytest.mark.parametrize(("no_colour", "coloured"), [("", True), ("1", False)])
def test_colours_are_for_a_terminal(no_colour: str, coloured: bool) -> None:  # noqa: FBT001 - a parameter
    """And NO_COLOR takes them away."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        subprocess.run(
            [sys.executable, "-m", "outbox", "doctor", "--dsn", NOWHERE],
            env={**os.environ, "NO_COLOR": no_colour},
            stdout=theirs,
            timeout=60,
            check=False,
        )
        shown = terminal.read(100_000)
        os.close(theirs)
    assert (b"\x1b[31mproblem" in shown) is coloured
    assert (b"\x1b" in shown) is coloured


def test_the_readme_tells_of_each_check() -> None:
    """Its table has their names, in their order."""
    section = README.partition("\n## What is wrong\n")[2].partition("\n## ")[0]
    assert [line.split("|")[1].strip(" `") for line in section.splitlines() if line.startswith("| `")] == [
        check.name for check in CHECKS
    ]
