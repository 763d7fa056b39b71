"""Asks of many hosts whether they could be posted to: have they an address, and may it be used. Nothing is sent."""

import asyncio
import contextlib
import socket
from collections.abc import Collection
from dataclasses import replace

from outbox.core.model import Failure, FailureKind
from outbox.http.guard import Guard
from outbox.http.pool import DialError, permitted
from outbox.http.resolver import Resolver

_ANY_PORT = 443


async def unreachable(hosts: Collection[str], guard: Guard, *, within: float, at_once: int = 20) -> dict[str, Failure]:
    """Return the hosts that no POST could be sent to, and why.

    All look-ups together take no longer than `within` seconds, and no more than `at_once` are under way.
    """
    resolver = Resolver()
    turns = asyncio.Semaphore(at_once)
    # What is not known at the end of the deadline.
    found = {host: Failure(FailureKind.TIMEOUT, f"no answer of the resolver within {within:g} s") for host in hosts}

    async def ask(host: str) -> None:
        async with turns:
            failure = await _ask(resolver, host, guard)
        if failure is None:
            del found[host]
        else:
            found[host] = failure

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            await asyncio.gather(*[ask(host) for host in found])
    return found


async def _ask(resolver: Resolver, host: str, guard: Guard) -> Failure | None:
    try:
        permitted(await resolver.addresses(host, _ANY_PORT), guard)
    except DialError as error:
        # Whoever asks here runs the daemon, and may know the address.
        address = error.failure.address or host
        return replace(error.failure, message=f"{address} is {guard.address_refusal(address)}")
    except socket.gaierror as error:
        return Failure(FailureKind.RESOLVE, f"the host has no address: {error.strerror}")
    except (OSError, UnicodeError):
        return Failure(FailureKind.RESOLVE, "the host is no name and no address")
    return None
