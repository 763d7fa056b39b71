"""docs/dependencies.md tells of what the daemon is made of; the image and the examples give it no right to spare."""

import re
import tomllib
from pathlib import Path

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
