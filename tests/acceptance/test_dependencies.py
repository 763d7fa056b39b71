"""docs/dependencies.md tells of what the daemon is made of; the image and the examples give it no right to spare."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from outbox.demo.supervisor import free_port

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_each_dependency_is_told_of_and_no_other() -> None:
    """A package in pyproject.toml has its row, with the files that it names."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[>=;]", each)[0].strip() for each in wanted}
    assert set(re.findall(r"^\| `([^`]+)` \|", TEXT, re.MULTILINE)) == names
    assert [path for path in re.findall(r"`(outbox/[\w/.]+)`", TEXT) if not (ROOT / path).exists()] == []


def test_what_comes_along_is_pinned() -> None:
    """Each package that the page names stands in constraints.txt."""
    pinned = {
        line.split("==")[0].replace("_", "-").lower() for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    [paragraph] = re.findall(r"They bring along.*?The extra", TEXT, re.DOTALL)
    named = {name.replace("_", "-") for name in re.findall(r"`([\w-]+)`", paragraph)}
    assert named <= pinned


def test_the_image_needs_no_root_no_shell_and_no_writable_file_system() -> None:
    """The user is a number, no program is a line for a shell, and the examples say read-only and no capabilities."""
    last = DOCKERFILE[DOCKERFILE.rindex("FROM ") :]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last, re.MULTILINE)
    for instruction in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
        assert re.search(rf"^{instruction}( .*)? \[", last, re.MULTILINE), instruction
    assert not re.search(r"^RUN ", last, re.MULTILINE)
    compose = (ROOT / "deploy" / "compose.yaml").read_text()
    assert {"read_only: true", "cap_drop: [ALL]"} <= {line.strip() for line in compose.splitlines()}
    assert "no-new-privileges" in compose
    pod = (ROOT / "deploy" / "kubernetes-sidecar.yaml").read_text()
    for setting in ("runAsNonRoot", "readOnlyRootFilesystem"):
        assert f"{setting}: true" in pod
    assert "allowPrivilegeEscalation: false" in pod
    assert "capabilities: {drop: [ALL]}" in pod


def test_a_daemon_loads_only_what_it_was_told_to_use(db: str) -> None:
    """A web server when it listens, the cipher when there is a key: each is megabytes of memory."""
    key = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
    listen = f"127.0.0.1:{free_port()}"
    assert _loads(OUTBOX_DSN=db) == set()
    assert _loads(OUTBOX_DSN=db, OUTBOX_SECRET_KEY=key) == {"cryptography"}
    assert _loads(OUTBOX_DSN=db, OUTBOX_LISTEN=listen) == {"aiohttp", "prometheus_client"}


def _loads(**variables: str) -> set[str]:
    """Return which of the larger packages a daemon loads until nothing is due."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "outbox", "run", "--until-empty"],
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = set(re.findall(r"^import time:.*\| +(\w+)$", ran.stderr, re.MULTILINE))
    assert "psycopg" in loaded
    return loaded & {"aiohttp", "cryptography", "prometheus_client"}
