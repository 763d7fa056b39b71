"""The source document's three steps with curl, against a running demo, as it prints them."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outbox.demo.embedded import embedded_binaries

pytestmark = [
    pytest.mark.skipif(not embedded_binaries(), reason="needs: pip install '.[demo]'"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
]

OUTBOX = Path(sys.executable).with_name("outbox")


def test_the_three_curls_run_as_printed() -> None:
    """A config, a contact, and the log of what was sent: each command is taken from the demo's own lines."""
    with subprocess.Popen(
        [OUTBOX, "demo"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            told = ""
            for line in process.stdout:
                told += line
                if line.startswith("It goes on"):
                    break
            commands = re.findall(r"^curl (?:.*\\\n)*.*", told, re.MULTILINE)
            config, contact, logs = (
                subprocess.run(["sh", "-c", each], capture_output=True, text=True, check=True, timeout=30).stdout
                for each in commands
            )
            # They do not disturb what the demo itself goes on to check.
            for line in process.stdout:
                if line.startswith("    ok  DELETE"):
                    break
                assert "WRONG" not in line
        finally:
            os.killpg(process.pid, signal.SIGINT)
    assert '"postbackconfig": {"id": ' in config
    assert '"last_name": "Jones"' in contact
    assert '"postbacklogs": [{"id": ' in logs
