"""Applies the files of sql/ and compares the database's ledger with them. No DDL stands here.

Each file records itself, so psql and this module keep one ledger.
"""

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import psycopg
from psycopg import sql

from outbox.errors import OutboxError, SchemaError
from outbox.postgres.pool import connected

_LEDGER_LINE = re.compile(r"^values \((\d+), '(\w+)', '([0-9a-f]*)'\);$", re.MULTILINE)


@dataclass(frozen=True)
class Migration:
    """One file of sql/: its place in the order, its name, the checksum that it declares, and its text."""

    version: int
    name: str
    checksum: str
    text: str

    @property
    def file_name(self) -> str:
        """The name of the file in sql/."""
        return f"{self.version:04}_{self.name}.sql"

    @property
    def is_as_released(self) -> bool:
        """Whether the text still has the checksum that it declares."""
        return checksum(self.text) == self.checksum


def checksum(text: str) -> str:
    """Return the SHA-256 of a file of sql/, read with its own declared checksum replaced by nothing."""
    unsealed = _LEDGER_LINE.sub(lambda line: f"values ({line[1]}, '{line[2]}', '');", text, count=1)
    return hashlib.sha256(unsealed.encode()).hexdigest()


def sealed(text: str) -> str:
    """Return the text with its checksum written into its ledger line. For files that are not released yet."""
    digest = checksum(text)
    return _LEDGER_LINE.sub(lambda line: f"values ({line[1]}, '{line[2]}', '{digest}');", text, count=1)


def sql_folder() -> Path:
    """Return the folder of the SQL files: the wheel's, or in a checkout its sql/."""
    packaged = Path(str(resources.files("outbox"))) / "_sql"
    return packaged if packaged.is_dir() else packaged.parent.parent / "sql"


def known_migrations() -> list[Migration]:
    """Return the files of sql/ in their order."""
    return [_read(path) for path in sorted(sql_folder().glob("[0-9]*.sql"))]


def _read(path: Path) -> Migration:
    text = path.read_text(encoding="utf-8")
    line = _LEDGER_LINE.search(text)
    if line is None:
        raise SchemaError(f"{path.name} does not record itself in outbox.migrations.")
    return Migration(int(line[1]), line[2], line[3], text)


# The tempting to_regclass('outbox.migrations') answers from the session's cache. One that saw no ledger, and then
# waited for its turn while another made it, would still see none. To read the catalog is to hear of what came since.
_HAS_LEDGER = """
select exists (
    select from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = 'outbox' and c.relname = 'migrations'
)
"""


async def applied(conn: psycopg.AsyncConnection) -> dict[int, str]:
    """Return the ledger: version and checksum of what was applied; empty where nothing was."""
    found = await (await conn.execute(_HAS_LEDGER.encode())).fetchone()
    if not (found and found[0]):
        return {}
    rows = await (await conn.execute("select version, checksum from outbox.migrations order by 1")).fetchall()
    return dict(rows)


def differences(ledger: dict[int, str], known: list[Migration]) -> list[str]:
    """Return what keeps this program from working with a database that has this ledger, a sentence each."""
    by_version = {migration.version: migration for migration in known}
    behind = [migration.file_name for migration in known if migration.version not in ledger]
    ahead = [str(version) for version in ledger if version not in by_version]
    edited = [
        migration.file_name
        for migration in known
        if not migration.is_as_released or ledger.get(migration.version, migration.checksum) != migration.checksum
    ]
    newest = max(by_version, default=0)
    found = []
    if behind:
        found.append(f"The database is behind: it lacks {', '.join(behind)}. Run: outbox migrate")
    if ahead:
        found.append(
            f"The database is ahead: it has version {', '.join(ahead)}, this program knows up to {newest}. "
            "Run a newer outbox."
        )
    if edited:
        found.append(f"Edited after its release: {', '.join(edited)}. Restore the released file.")
    return found


async def migrate(dsn: str) -> list[Migration]:
    """Apply what the database lacks, a transaction per file, and return it. Safe to run by several at once.

    Raises SchemaError where the database is ahead or a released file was edited: nothing is applied then.
    """
    known = known_migrations()
    done = []
    async with connected(dsn, "migrate") as conn:
        conn.prepare_threshold = None  # before a pooler each transaction has another session
        problems = [
            text for text in differences(await applied(conn), known) if not text.startswith("The database is behind")
        ]
        if problems:
            raise SchemaError("\n".join(problems))
        for migration in known:
            async with conn.transaction():
                # Two that migrate at once take turns, also before there is a ledger to lock.
                await conn.execute("select pg_advisory_xact_lock(hashtext('outbox.migrations'))")
                if migration.version in await applied(conn):
                    continue
                try:
                    await conn.execute(sql.SQL(migration.text))
                except psycopg.errors.LockNotAvailable as error:
                    raise OutboxError(
                        f"{migration.file_name}: another transaction held a lock for 5 s. Try again."
                    ) from error
                done.append(migration)
    return done
