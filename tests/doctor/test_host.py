"""Checks of the settings and of the host."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from outbox.core.finding import OK, PROBLEM, WARNING
from outbox.doctor.host import open_files, settings_fit, way_out
from outbox.settings import Proxy, Settings
from tests.findings import only


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"concurrency": 20, "max_in_flight_per_config": 20}, "OUTBOX_MAX_IN_FLIGHT_PER_CONFIG"),
        ({"request_timeout": 31.0}, "OUTBOX_DRAIN_TIMEOUT"),
        ({"workers": (os.cpu_count() or 1) + 1}, "OUTBOX_WORKERS"),
    ],
)
async def test_settings_that_do_not_fit_each_other_are_a_warning(settings: dict[str, Any], word: str) -> None:
    """The defaults do."""
    assert only(await settings_fit(Settings())).level is OK
    found = only(await settings_fit(Settings(**settings)))
    assert (found.level, word in found.message) == (WARNING, True)


@pytest.mark.parametrize(("limit", "level"), [(264, WARNING), (263, PROBLEM), (464, OK), (463, WARNING)])
async def test_too_few_open_files_look_like_subscribers_that_fail(limit: int, level: str) -> None:
    """Fewer than the slots is a problem; with fewer than twice that, none may be kept for the next POST."""
    assert only(await open_files(Settings(concurrency=200), limit=limit)).level == level


async def test_files_that_no_daemon_can_read_are_a_problem(tmp_path: Path) -> None:
    """With the words that `outbox run` has for them."""
    assert only(await way_out(Settings())).level is OK
    missing = tmp_path / "ca.pem"
    found = only(await way_out(Settings(ca_file=missing)))
    assert (found.level, str(missing) in found.message) == (PROBLEM, True)


async def test_a_proxy_that_is_not_there_is_a_problem() -> None:
    """Nothing is sent meanwhile, and no try tells of it."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    settings = Settings(proxy=Proxy(host, port))
    async with server:
        assert only(await way_out(settings)).level is OK
    found = only(await way_out(settings))
    assert (found.level, "connection refused" in found.message) == (PROBLEM, True)
