"""Where deliveries go: the configs in use, with their credentials in clear, kept in memory by revision."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self
from uuid import UUID

import psycopg
import structlog

from outbox.core import signing
from outbox.core.model import ConfigId, Delivery, PostbackConfig
from outbox.core.postback import basic_authorization
from outbox.postgres import configs
from outbox.secrets import SecretBox, SecretError, open_signing_secrets

_REMEMBERED = 10_000
"""Configs that are kept at most, those used last, unless more can be in hand."""

log = structlog.get_logger("outbox")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a config keeps secret, in clear: the Authorization header's value, and what signs, the newest first."""

    authorization: str | None = field(default=None, repr=False)
    secrets: tuple[signing.Secret, ...] = ()

    @classmethod
    def of(cls, config: PostbackConfig, box: SecretBox) -> Self:
        """Open them; SecretError when that can not be done."""
        authorization = None
        if config.basic_auth_username is not None:
            password = config.basic_auth_password
            authorization = basic_authorization(
                box.open(config.basic_auth_username), None if password is None else box.open(password)
            )
        return cls(authorization, open_signing_secrets(box, config.signing_secrets))

    def signature(self, event_id: str, timestamp: int, body: bytes) -> str | None:
        """Return the webhook-signature of one try, at epoch seconds; None when the config does not sign."""
        return signing.signature(self.secrets, event_id, timestamp, body) if self.secrets else None


@dataclass(frozen=True, slots=True)
class Target:
    """A config, ready to be posted to."""

    config: PostbackConfig
    credentials: Credentials
    fault: str | None
    """Why nothing can be sent, for a reason that is not the subscriber's."""

    @property
    def sends(self) -> bool:
        """Whether the config wants what it is owed now."""
        config = self.config
        return config.is_active and config.paused_at is None and config.deleted_at is None


class Targets:
    """The configs that deliveries in hand belong to; `in_hand`: of so many configs they can be, at the most."""

    def __init__(self, box: SecretBox, *, in_hand: int = 0) -> None:
        self._box = box
        # What is in hand of one that is forgotten would be given back, and claimed again.
        self._remembered = max(_REMEMBERED, in_hand)
        self._known: dict[ConfigId, Target] = {}
        self._doubtful: set[ConfigId] = set()

    def get(self, config_id: ConfigId) -> Target | None:
        """Return a config that was loaded, or None."""
        return self._known.get(config_id)

    def doubt(self) -> None:
        """Load each anew when it is needed, whatever its revision: the database may have been restored meanwhile."""
        self._doubtful = set(self._known)

    async def refresh(self, conn: psycopg.AsyncConnection, deliveries: Iterable[Delivery]) -> None:
        """Load the configs of these deliveries that are not known in the revision of the claim."""
        stale = []
        for config_id, revision in {each.config_id: each.config_revision for each in deliveries}.items():
            known = self._known.pop(config_id, None)
            if known is not None:
                self._known[config_id] = known  # the last: used just now
            if known is None or known.config.revision < revision or config_id in self._doubtful:
                stale.append(config_id)
        await self.reload(conn, stale)

    async def reload(self, conn: psycopg.AsyncConnection, config_ids: Sequence[ConfigId]) -> None:
        """Load these configs as they are now."""
        if not config_ids:
            return
        for config in await configs.load(conn, [UUID(each) for each in config_ids]):
            config_id = ConfigId(str(config.id))
            known = self._known.pop(config_id, None)
            if known is None or known.config.revision < config.revision or config_id in self._doubtful:
                self._doubtful.discard(config_id)
                known = self._target(config)
            self._known[config_id] = known
        for config_id in list(itertools.islice(self._known, max(0, len(self._known) - self._remembered))):
            del self._known[config_id]

    def _target(self, config: PostbackConfig) -> Target:
        try:
            return Target(config, Credentials.of(config, self._box), None)
        except SecretError as error:
            log.error("config.unreadable", config_id=str(config.id), error=str(error))  # noqa: TRY400 - no bug: no traceback
            return Target(config, Credentials(), str(error))
