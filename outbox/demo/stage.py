"""Sets the stage of the demo and clears it: application, subscriber and daemon, beside a server that runs already."""

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable, Coroutine

import psycopg
from aiohttp import web
from psycopg.conninfo import make_conninfo

from outbox import signals
from outbox.api import server as api
from outbox.daemon.run import run_daemon
from outbox.demo import contacts, contacts_api
from outbox.demo.embedded import EmbeddedPostgres
from outbox.demo.receiver import Receiver
from outbox.demo.walk import Walk
from outbox.errors import OutboxError
from outbox.postgres import users
from outbox.postgres.capture import attach
from outbox.postgres.migrations import migrate
from outbox.postgres.pool import Links
from outbox.settings import Settings

_ROLE = "outbox"
# No superuser, like the application's role, which has no right on the outbox in turn.
_ROLES = f"""
create role {_ROLE} login;
grant create on database postgres to {_ROLE};
grant trigger on public.contacts to {_ROLE};
"""
_MIN_ATTEMPT_INTERVAL = 1
"""Seconds. The contract's floor is 300, too long to watch."""


async def play(server: EmbeddedPostgres, *, once: bool, say: Callable[[str], None]) -> None:
    """Walk through the workflow and, unless `once`, go on with it until SIGINT or SIGTERM.

    `say` prints a line. Raises OutboxError when anything was not as the contract says, and when it was stopped
    before that was known.
    """
    interrupted = asyncio.Event()
    for signum in signals.ending():
        asyncio.get_running_loop().add_signal_handler(signum, interrupted.set)
    dsn = make_conninfo(server.dsn, user=_ROLE)
    await _prepare(server.dsn, dsn)
    settings = Settings(
        dsn=dsn,
        allow_networks=(ipaddress.ip_network("127.0.0.0/8"),),
        min_attempt_interval=_MIN_ATTEMPT_INTERVAL,
        poll_interval=0.2,
        drain_timeout=5.0,
    )
    async with (
        await psycopg.AsyncConnection.connect(make_conninfo(server.dsn, user=contacts.ROLE), autocommit=True) as app,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
        Receiver() as receiver,
        _served(settings, make_conninfo(server.dsn, user=contacts.ROLE)) as url,
    ):
        await receiver.listen()
        say(f"PostgreSQL {server.version} in {server.directory}; a receiver on {receiver.url}; the daemon in here.")
        walk = Walk(app, conn, receiver, _MIN_ATTEMPT_INTERVAL, say)
        user, key = await users.add(conn, "demo", [contacts.LOCATION])
        three = curls(url, str(user.id), key, receiver.url + "/yours")
        await _with_daemon(settings, _story(walk, three, say, once=once), interrupted)
    if walk.faults:
        raise OutboxError(f"Not as the contract says: {walk.faults}, each told above.")
    if not walk.is_done:
        raise OutboxError("Stopped before the walk was done.")


def curls(url: str, user_id: str, key: str, receiver: str) -> str:
    """Return the source document's steps for a shell, with the demo's own user and receiver."""
    sign_in = f"-H 'user-id: {user_id}' -H 'user-api-key: {key}' -H 'Content-Type: application/json'"
    return f"""
The API is on {url} (its description: {url}/docs). The user {user_id} has the key {key}.
The source document's steps, for another terminal:

curl {sign_in} {url}/v2/postbackconfigs \\
  -d '{{"postbackconfig": {{"location_id": "{contacts.LOCATION}", "resource": "contact", "url": "{receiver}"}}}}'
curl {sign_in} {url}/v2/contacts \\
  -d '{{"contact": {{"last_name": "Jones", "location_id": "{contacts.LOCATION}"}}}}'
curl {sign_in} {url}/v2/postbacklogs
"""


@contextlib.asynccontextmanager
async def _served(settings: Settings, app_dsn: str) -> AsyncIterator[str]:
    """Serve the API and the application's on a free port of loopback; the URL."""
    app = api.application(settings)
    links = app[contacts_api.CONTACTS] = Links(app_dsn, "demo", count=2)
    contacts_api.add_routes(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
        await links.close()


async def _story(walk: Walk, ending: str, say: Callable[[str], None], *, once: bool) -> None:
    await walk.run()
    if not once:
        say(ending)
        await walk.go_on()


async def _with_daemon(settings: Settings, story: Coroutine[None, None, None], interrupted: asyncio.Event) -> None:
    """Run the story while the daemon runs, until the first of the two ends or it is interrupted."""
    stop = asyncio.Event()
    daemon = asyncio.create_task(run_daemon(settings, stop=stop))
    others = [asyncio.create_task(story), asyncio.create_task(interrupted.wait())]
    await asyncio.wait({daemon, *others}, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    stop.set()
    for ended in await asyncio.gather(daemon, *others, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended


async def _prepare(server_dsn: str, dsn: str) -> None:
    """Create the application's table and the two roles, install the schema and attach the table."""
    async with await psycopg.AsyncConnection.connect(server_dsn, autocommit=True) as conn:
        await conn.execute(contacts.DDL)
        await conn.execute(_ROLES.encode())
    await migrate(dsn)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await attach(conn, "public.contacts", contacts.RESOURCE)
