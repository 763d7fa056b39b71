"""Where deliveries go: the configs in use, with their credentials in clear, kept in memory by revision."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import psycopg
import structlog

from outbox.core.model import Delivery, PostbackConfig
from outbox.core.postback import basic_authorization
from outbox.postgres import configs
from outbox.secrets import SecretBox, SecretError

_REMEMBERED = 10_000
"""Configs that are kept at most; beyond it all are forgotten and loaded again as they are needed."""

log = structlog.get_logger("outbox")


@dataclass(frozen=True, slots=True)
class Target:
    """A config, ready to be posted to."""

    config: PostbackConfig
    authorization: str | None = field(repr=False)
    fault: str | None
    """Why nothing can be sent, for a reason that is not the subscriber's."""

    @property
    def sends(self) -> bool:
        """Whether the config wants what it is owed now."""
        config = self.config
        return config.is_active and config.paused_at is None and config.deleted_at is None


class Targets:
    """The configs that deliveries in hand belong to."""

    def __init__(self, box: SecretBox) -> None:
        self._box = box
        self._known: dict[UUID, Target] = {}

    def get(self, config_id: UUID) -> Target | None:
        """Return a config that was loaded, or None."""
        return self._known.get(config_id)

    async def refresh(self, conn: psycopg.AsyncConnection, deliveries: Iterable[Delivery]) -> None:
        """Load the configs of these deliveries that are not known in the revision of the claim."""
        stale = {
            delivery.config_id
            for delivery in deliveries
            if (known := self._known.get(delivery.config_id)) is None
            or known.config.revision < delivery.config_revision
        }
        await self.reload(conn, list(stale))

    async def reload(self, conn: psycopg.AsyncConnection, config_ids: Sequence[UUID]) -> None:
        """Load these configs as they are now."""
        if not config_ids:
            return
        if len(self._known) + len(config_ids) > _REMEMBERED:
            self._known.clear()
        for config in await configs.load(conn, config_ids):
            known = self._known.get(config.id)
            if known is None or known.config.revision != config.revision:
                self._known[config.id] = self._target(config)

    def _target(self, config: PostbackConfig) -> Target:
        if config.basic_auth_username is None:
            return Target(config, None, None)
        try:
            password = config.basic_auth_password
            return Target(
                config,
                basic_authorization(
                    self._box.open(config.basic_auth_username), None if password is None else self._box.open(password)
                ),
                None,
            )
        except SecretError as error:
            log.error("config.unreadable", config_id=str(config.id), error=str(error))  # noqa: TRY400 - no bug: no traceback
            return Target(config, None, str(error))
