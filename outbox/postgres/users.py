"""Users of the API: add, find, list, give another key, remove. A key is told once; only its hash is kept."""

import hashlib
import secrets
from collections.abc import Sequence
from uuid import UUID

from psycopg import AsyncConnection

from outbox.core.model import User
from outbox.errors import OutboxError, UsageError

_KEY_BYTES = 32
_MAX_NAME = 128
_MAX_LOCATION = 36

_ADD = """
insert into outbox.users (name, key_hash, location_ids, is_operator) values (%s, %s, %s, %s) returning id
"""
_FIND = """
select id, name, location_ids, is_operator, key_hash from outbox.users where id = %s and deleted_at is null
"""
_LIST = """
select id, name, location_ids, is_operator from outbox.users where deleted_at is null order by created_at, id
"""
_ROTATE = "update outbox.users set key_hash = %s where id = %s and deleted_at is null"
_REMOVE = "update outbox.users set deleted_at = now() where id = %s and deleted_at is null"


class UnknownUserError(OutboxError):
    """There is no user with this id, or it was removed."""

    def __init__(self, user_id: UUID) -> None:
        super().__init__(f"There is no user {user_id}. See: outbox user list")


def hash_of(key: str) -> bytes:
    """Return what is kept of a key. A slow hash would protect guessable passwords; a key is 256 random bits."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


async def add(conn: AsyncConnection, name: str, location_ids: Sequence[str] | None) -> tuple[User, str]:
    """Store a user of these locations, or with None an operator; returns it and its key, which nobody can tell again.

    Raises UsageError for a name or a location that is no such thing.
    """
    _check(name, location_ids)
    key = secrets.token_urlsafe(_KEY_BYTES)
    wanted = list(dict.fromkeys(location_ids or ()))
    cursor = await conn.execute(_ADD, (name, hash_of(key), wanted, location_ids is None))
    [row] = await cursor.fetchall()
    return _user((*row, name, wanted, location_ids is None)), key


def _check(name: str, location_ids: Sequence[str] | None) -> None:
    faults = []
    if not 1 <= len(name) <= _MAX_NAME or "\0" in name:
        faults.append(f"name must have 1 to {_MAX_NAME} characters.")
    if location_ids is not None and not location_ids:
        faults.append("A user needs at least one location; an operator sees all.")
    if any(not 1 <= len(each) <= _MAX_LOCATION or "\0" in each for each in location_ids or ()):
        faults.append(f"location must have 1 to {_MAX_LOCATION} characters.")
    if faults:
        raise UsageError("\n".join(faults))


async def find(conn: AsyncConnection, user_id: UUID) -> tuple[User, bytes] | None:
    """Return a user and the hash of its key; None when there is none."""
    row = await (await conn.execute(_FIND, (user_id,))).fetchone()
    return None if row is None else (_user(row), bytes(row[4]))


async def list_(conn: AsyncConnection) -> list[User]:
    """Return all users, oldest first."""
    return [_user(row) for row in await (await conn.execute(_LIST)).fetchall()]


async def rotate(conn: AsyncConnection, user_id: UUID) -> str:
    """Give a user another key and return it; the old one is worth nothing more. Raises UnknownUserError."""
    key = secrets.token_urlsafe(_KEY_BYTES)
    if (await conn.execute(_ROTATE, (hash_of(key), user_id))).rowcount == 0:
        raise UnknownUserError(user_id)
    return key


async def remove(conn: AsyncConnection, user_id: UUID) -> None:
    """Let a user sign in no more. Raises UnknownUserError."""
    if (await conn.execute(_REMOVE, (user_id,))).rowcount == 0:
        raise UnknownUserError(user_id)


def _user(row: Sequence[object]) -> User:
    user_id, name, location_ids, is_operator = row[:4]
    if not isinstance(user_id, UUID) or not isinstance(location_ids, list):
        raise TypeError("outbox.users has other columns than this program knows")
    return User(user_id, str(name), None if is_operator else tuple(location_ids))
