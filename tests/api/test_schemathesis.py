"""The API keeps to its description, whatever comes: schemathesis asks it by /openapi.json, with all its checks."""

import asyncio
import os
import sys
from pathlib import Path

import psycopg
from cryptography.fernet import Fernet

from outbox.api.identity import SignIn
from outbox.api.server import add_health
from outbox.core.model import Dead, Delivered
from outbox.settings import Settings
from tests.apis import new_user, serving
from tests.tried import add_config, attach_contacts, try_all

HERE = Path(__file__).parent


async def test_the_api_keeps_to_its_description(db: str, conn: psycopg.Connection, tmp_path: Path) -> None:
    """Right requests are accepted, wrong ones refused, each answer has its described form, and nothing fails."""
    attach_contacts(conn)
    config = add_config(conn)
    async with await psycopg.AsyncConnection.connect(db, autocommit=True) as daemon:
        conn.execute("insert into contacts values (1, 'L', 'x')")
        await try_all(daemon, Delivered())
        conn.execute("insert into contacts values (2, 'L', 'x')")
        [dead] = await try_all(daemon, Dead("no luck"))
    user = await new_user(db, "L")
    settings = Settings(dsn=db, secret_key=(Fernet.generate_key().decode(),))
    # Without credentials it asks often, from one address.
    async with serving(settings, add_health, sign_in=SignIn(failure_burst=1e6)) as api:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"),
            "run", "--no-color", str(api.make_url("/openapi.json")),
            *(f"--header={name}:{value}" for name, value in user.items()),
            cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=os.environ | {
                "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE),
                "CONFIG_ID": str(config), "LOG_ID": f"{dead.event_id}.{config}",
            },
        )  # fmt: skip
        told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
