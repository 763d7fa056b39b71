"""All stored secrets sealed anew with the newest key, batch by batch. What they are stays as it is."""

from dataclasses import dataclass, field
from uuid import UUID

from psycopg import AsyncConnection

from outbox.secrets import SecretBox, SecretError

_BATCH = 500

# Deleted configs as well: a key that is dropped should open nothing any more. Locked, so that no edit in between is
# overwritten with the secret before it.
_NEXT = """
select id, basic_auth_username, basic_auth_password, signing_secrets from outbox.postback_configs
where id > %(after)s
    and (basic_auth_username is not null or basic_auth_password is not null or signing_secrets is not null)
order by id limit %(rows)s
for no key update
"""
# The tempting `revision = revision + 1` would make each daemon open the secrets again, and one that was not given the
# new key yet could not. What it remembers is still right.
_STORE = """
update outbox.postback_configs as c
set basic_auth_username = n.username, basic_auth_password = n.password, signing_secrets = n.signing
from unnest(%s::uuid[], %s::text[], %s::text[], %s::text[]) as n (id, username, password, signing)
where c.id = n.id
"""


@dataclass(slots=True)
class Resealed:
    """How it went. `secrets`: tokens sealed anew; `current`: those that were sealed with the newest key already."""

    configs: int = 0
    secrets: int = 0
    current: int = 0
    unreadable: list[UUID] = field(default_factory=list)
    """Configs with a secret that no key reads. They are left as they are."""


async def reseal(conn: AsyncConnection, box: SecretBox, *, dry_run: bool = False, batch: int = _BATCH) -> Resealed:
    """Seal all that is stored with the newest key; with `dry_run` only count.

    Each batch is a transaction of its own, so the connection must not be in one. After an interruption it goes on where
    it was: what is sealed with the newest key already is passed over. UsageError when no key is set.
    """
    report, after = Resealed(), UUID(int=0)
    while True:
        async with conn.transaction():
            found = await (await conn.execute(_NEXT, {"after": after, "rows": batch})).fetchall()
            changed = []
            for config_id, *tokens in found:
                try:
                    sealed = [None if token is None else box.reseal(token) for token in tokens]
                except SecretError:
                    report.unreadable.append(config_id)
                    continue
                anew = sum(new != old for new, old in zip(sealed, tokens, strict=True))
                report.secrets += anew
                report.current += sum(token is not None for token in tokens) - anew
                if anew:
                    changed.append((config_id, *sealed))
            if changed and not dry_run:
                await conn.execute(_STORE, [list(column) for column in zip(*changed, strict=True)])
        report.configs += len(found)
        if len(found) < batch:
            return report
        after = found[-1][0]
