"""Hosts that nothing could be sent to are found without sending anything."""

import ipaddress

from outbox.core.model import FailureKind
from outbox.http.guard import Guard
from outbox.http.hosts import unreachable

LOOPBACK = Guard(allow=(ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")))


async def test_each_host_has_its_reason() -> None:
    """No address, a forbidden one, no name at all; what may be posted to is left out."""
    hosts = ["nowhere.invalid", "127.0.0.1", "10.0.0.1", "8.8.8.8", "localhost", "x" * 64 + ".example"]
    found = await unreachable(hosts, Guard(), within=30)
    assert {host: failure.kind for host, failure in found.items()} == {
        "nowhere.invalid": FailureKind.RESOLVE,
        "127.0.0.1": FailureKind.FORBIDDEN,
        "10.0.0.1": FailureKind.FORBIDDEN,
        "localhost": FailureKind.FORBIDDEN,
        "x" * 64 + ".example": FailureKind.RESOLVE,
    }
    assert "a loopback address" in found["127.0.0.1"].message
    assert set(await unreachable(["127.0.0.1", "localhost"], LOOPBACK, within=30)) == set()


async def test_the_deadline_is_one_for_all() -> None:
    """A resolver that does not answer costs no more, and its hosts are told as such."""
    found = await unreachable([f"host{number}.invalid" for number in range(100)], Guard(), within=0)
    assert {failure.kind for failure in found.values()} == {FailureKind.TIMEOUT}
    assert len(found) == 100


async def test_few_look_ups_at_once_are_enough_for_many_hosts() -> None:
    """Each gets its turn."""
    hosts = [f"host{number}.invalid" for number in range(10)]
    found = await unreachable(hosts, Guard(), within=60, at_once=2)
    assert {failure.kind for failure in found.values()} == {FailureKind.RESOLVE}
    assert list(found) == hosts
