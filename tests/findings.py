"""What the checks of `outbox doctor` found."""

from outbox.core.finding import Finding


def only(found: list[Finding]) -> Finding:
    """Return the only one."""
    assert len(found) == 1, found
    return found[0]
