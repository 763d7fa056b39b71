"""pgqueuer: `pgqueuer_worker.py install | seed FILE | work URL IN_FLIGHT SETTINGS`, with a Python that has it.

The database is that of the environment (PGHOST …). SETTINGS: JSON of {managers, run}: how many queue managers share
the process, each with a connection of its own, and the arguments of run(). A job is an id, a space and the body.
"""

import asyncio
import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

SCHEMA = "pgqueuer"
ENTRYPOINT = "post"


async def connection() -> asyncpg.Connection:
    """Connect, in the peer's own schema."""
    return await asyncpg.connect(server_settings={"search_path": SCHEMA})


async def install() -> None:
    """Make the schema, with the settings of the tables that its guide to performance asks for."""
    conn = await connection()
    await conn.execute(f"create schema {SCHEMA}")
    queries = Queries(AsyncpgDriver(conn))
    await queries.install()
    await queries.optimize_autovacuum()
    await conn.close()


async def seed(lines: list[bytes]) -> None:
    """Enqueue a job for each line."""
    conn = await connection()
    queries = Queries(AsyncpgDriver(conn))
    for at in range(0, len(lines), 5_000):
        some = lines[at : at + 5_000]
        await queries.enqueue([ENTRYPOINT] * len(some), some, [0] * len(some))
    await conn.close()


async def work(url: str, in_flight: int, settings: dict[str, Any]) -> None:
    """Run the queue managers until SIGTERM ends the process."""
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    ) as session:

        async def post(job: Job) -> None:
            identity, _, body = (job.payload or b"").partition(b" ")
            headers = {
                "User-Agent": "peer",
                "Content-Type": "application/x-www-form-urlencoded",
                "webhook-id": identity.decode(),
                "webhook-timestamp": str(int(time.time())),
            }
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                await answer.read()
                answer.raise_for_status()

        managers = [PgQueuer(AsyncpgDriver(await connection())) for _ in range(settings["managers"])]
        for manager in managers:
            manager.entrypoint(ENTRYPOINT)(post)
        run = {**settings["run"], "dequeue_timeout": timedelta(seconds=settings["run"]["dequeue_timeout"])}
        await asyncio.gather(*(manager.run(**run) for manager in managers))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["install"]:
            uvloop.run(install())
        case ["seed", path]:
            uvloop.run(seed(Path(path).read_bytes().splitlines()))
        case ["work", url, in_flight, settings]:
            uvloop.run(work(url, int(in_flight), json.loads(settings)))
