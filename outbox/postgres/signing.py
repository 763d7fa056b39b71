"""A config's signing secrets: made, rotated, removed. Told once, and sealed before the database sees them."""

import secrets
from collections.abc import Sequence
from uuid import UUID

from psycopg import AsyncConnection

from outbox.core import signing
from outbox.core.signing import Secret, SigningError
from outbox.postgres import listing
from outbox.secrets import SecretBox, open_signing_secrets

# The row is locked since it was read. The tempting read, change and update without a lock lets one of two rotations at
# once take the other's secret away, which somebody was just told.
_STORE = """
update outbox.postback_configs set signing_secrets = %s, revision = revision + 1, modified_at = now() where id = %s
"""
# An overlap ends by the clock that webhook-timestamp follows.
_NOW = "select floor(extract(epoch from now()))::bigint"


async def make(
    conn: AsyncConnection, config_id: UUID, box: SecretBox, *, locations: Sequence[str] | None = None
) -> str:
    """Give a config that does not sign a secret, and return it.

    `locations`: whose configs may be changed, None for all. Raises UnknownConfigError, DeletedConfigError, SigningError
    when it signs already, UsageError when no key seals the secret.
    """
    async with conn.transaction():
        config = await listing.visible(conn, config_id, locations, lock=True)
        if config.signing_secrets is not None:
            raise SigningError("The config has a signing secret already: rotate it, or remove it first.")
        key = secrets.token_bytes(signing.KEY_BYTES)
        await conn.execute(_STORE, (box.seal(signing.dump([Secret(key)])), config_id))
    return signing.to_text(key)


async def rotate(
    conn: AsyncConnection, config_id: UUID, box: SecretBox, *, overlap: int, locations: Sequence[str] | None = None
) -> str:
    """Give a config another secret and return it; the former one signs beside it for `overlap` seconds.

    With an overlap of 0 all former ones end. Raises as `make` does, SigningError as `rotated`, SecretError when the
    former ones can not be read.
    """
    async with conn.transaction():
        config = await listing.visible(conn, config_id, locations, lock=True)
        former = open_signing_secrets(box, config.signing_secrets)
        row = await (await conn.execute(_NOW)).fetchone()
        key = secrets.token_bytes(signing.KEY_BYTES)
        kept = signing.rotated(former, key, now=row[0] if row else 0, overlap=overlap)
        await conn.execute(_STORE, (box.seal(signing.dump(kept)), config_id))
    return signing.to_text(key)


async def remove(conn: AsyncConnection, config_id: UUID, *, locations: Sequence[str] | None = None) -> bool:
    """Let a config sign no more; return whether it did. Raises UnknownConfigError and DeletedConfigError."""
    async with conn.transaction():
        config = await listing.visible(conn, config_id, locations, lock=True)
        if config.signing_secrets is None:
            return False
        await conn.execute(_STORE, (None, config_id))
        return True
