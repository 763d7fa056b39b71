"""docs/security.md names what there is: each test, module and setting that it tells of."""

import re
from pathlib import Path

from outbox.settings import BY_NAME, variable

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def test_what_is_named_is_there() -> None:
    """A promise that points to a test which is gone is no promise."""
    named = set(re.findall(r"`((?:tests|outbox)/[\w/]+\.py)`", TEXT))
    assert len(named) > 10
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []
    assert set(re.findall(r"OUTBOX_\w+", TEXT)) <= {variable(name) for name in BY_NAME}
