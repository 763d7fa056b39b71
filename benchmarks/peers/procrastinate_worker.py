"""procrastinate: `procrastinate_worker.py install | seed FILE | work URL IN_FLIGHT SETTINGS`.

The database is that of the environment (PGHOST …). SETTINGS: JSON of {pool, worker}: the arguments of its pool of
connections and of run_worker_async().
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import procrastinate
import psycopg
import uvloop

SCHEMA = "procrastinate"


class Poster:
    """The session that all jobs share, made when the loop runs."""

    session: aiohttp.ClientSession
    url: str


async def post(identity: str, body: str) -> None:
    """Be the job."""
    headers = {
        "User-Agent": "peer",
        "Content-Type": "application/x-www-form-urlencoded",
        "webhook-id": identity,
        "webhook-timestamp": str(int(time.time())),
    }
    async with Poster.session.post(Poster.url, data=body.encode(), headers=headers, allow_redirects=False) as answer:
        await answer.read()
        answer.raise_for_status()


def application(pool: dict[str, Any]) -> tuple[procrastinate.App, procrastinate.tasks.Task[Any, Any, Any]]:
    """Return the application and its one task."""
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(kwargs={"options": f"-c search_path={SCHEMA}"}, **pool)
    )
    return app, app.task(name="post", queue="post")(post)


async def install() -> None:
    """Make the schema."""
    async with await psycopg.AsyncConnection.connect(autocommit=True) as conn:
        await conn.execute(f"create schema {SCHEMA}".encode())
    app, _ = application({})
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


async def seed(lines: list[str]) -> None:
    """Defer a job for each line."""
    app, task = application({})
    jobs = [{"identity": line[:36], "body": line[37:]} for line in lines]
    async with app.open_async():
        for at in range(0, len(jobs), 5_000):
            await task.batch_defer_async(*jobs[at : at + 5_000])


async def work(url: str, in_flight: int, settings: dict[str, Any]) -> None:
    """Run the worker until SIGTERM ends it."""
    app, _ = application(settings["pool"])
    connector = aiohttp.TCPConnector(limit=in_flight)
    Poster.url = url
    async with (
        aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        ) as Poster.session,
        app.open_async(),
    ):
        await app.run_worker_async(**settings["worker"])


if __name__ == "__main__":
    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    match sys.argv[1:]:
        case ["install"]:
            uvloop.run(install())
        case ["seed", path]:
            uvloop.run(seed(Path(path).read_text("ascii").splitlines()))
        case ["work", url, in_flight, settings]:
            uvloop.run(work(url, int(in_flight), json.loads(settings)))
