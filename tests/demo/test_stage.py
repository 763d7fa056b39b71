"""The demo as a whole tells of what is wrong: its exit code 0 means something."""

import pytest

from outbox.demo import contacts
from outbox.demo.stage import play
from outbox.errors import OutboxError
from tests.servers import StartServer


async def test_a_record_that_is_not_the_contracts_fails_the_walk(
    own_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application whose contacts lack a key: each postback says what was expected and what came, and it fails."""
    monkeypatch.setattr(contacts, "DDL", contacts.DDL.replace("    zip text,\n", ""))
    told: list[str] = []
    with pytest.raises(OutboxError, match="Not as the contract says"):
        await play(own_server(fsync=False), once=True, say=told.append)
    output = "\n".join(told)
    assert "WRONG" in output
    assert "the keys of data: expected ('id', 'location_id'" in output
