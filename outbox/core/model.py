"""The nouns: what is subscribed, what is owed, what came back. Values only; no I/O and no decisions."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, NamedTuple, NewType
from uuid import UUID

ConfigId = NewType("ConfigId", str)
"""A config's id on the way of its deliveries, as PostgreSQL writes it: each looks for its config ten times, and a UUID
reckons its hash anew each time."""

NO_CONFIG = ConfigId("00000000-0000-0000-0000-000000000000")
"""Before all others in the order of ids."""


class EventType(StrEnum):
    """What happened to the record (contract: `type`)."""

    CREATE = "CREATE"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostbackConfig:
    """A subscription: what to watch and whom to tell (contract §1). Times are the database's."""

    id: UUID
    location_id: str | None
    resource: str
    product_transaction_id: str | None
    url: str
    on_create: bool
    on_update: bool
    on_delete: bool
    is_active: bool
    number_of_attempts: int
    attempt_interval: int
    """Seconds from the end of one try to the next."""
    basic_auth_username: str | None = field(repr=False)
    """A Fernet token, not clear text; so is the password."""
    basic_auth_password: str | None = field(repr=False)
    signing_secrets: str | None = field(repr=False)
    """A Fernet token of all that sign, see core/signing.py; None: its requests are not signed."""
    expands: str
    format: str
    backoff: str
    """fixed: each wait is attempt_interval. exponential: each is twice the last, with jitter, up to backoff_limit."""
    backoff_limit: int
    """Seconds."""
    strict_order: str
    """off; or one change of a record at a time, where a dead one `release`s or `hold`s the later ones."""
    rate_limit: int | None
    """Tries a second, over all daemons."""
    paused_at: datetime | None
    circuit_opened_at: datetime | None
    """Since when it gets probes only."""
    exhausted_at: datetime | None
    """When a delivery of it first died since it last recovered."""
    disabled_at: datetime | None
    disabled_reason: str | None
    """Why we switched it off."""
    created_at: datetime
    modified_at: datetime
    deleted_at: datetime | None
    revision: int
    """Counts edits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigStanding:
    """How one config stands, and what it owes."""

    id: UUID
    location_id: str | None
    resource: str
    url: str
    """Without what may be secret in it: user, password, query."""
    is_active: bool
    is_paused: bool
    circuit_is_open: bool
    """It failed many times in a row, and gets a probe now and then."""
    disabled_reason: str | None
    """Why it was switched off, when it was not by a person."""
    pending: int
    """Deliveries still to be made."""
    due: int
    """Of these, the ones that could be sent now and wait only for a daemon."""
    dead: int
    oldest_due_s: float
    """For how many seconds the oldest due one has been due; 0 when none is."""


@dataclass(frozen=True, slots=True)
class User:
    """Who may use the API, and for which locations."""

    id: UUID
    name: str
    location_ids: tuple[str, ...] | None
    """None for an operator, who sees all locations and the configs that have none."""

    @property
    def is_operator(self) -> bool:
        """Whether no location limits what is seen."""
        return self.location_ids is None


class Delivery(NamedTuple):
    """A claimed delivery: an event owed to a config, leased to us for one try.

    A tuple, because it is made once for each row: a frozen dataclass takes five times as long.
    """

    webhook_id: str
    """The event's id as its subscribers see it, and as PostgreSQL writes it. A UUID takes ten times as long to make."""
    config_id: ConfigId
    attempt: int
    """Number of this try, from 1, counted over replays. It is the fence of the settle."""
    attempts_uncounted: int
    """Tries that use up no budget: those before the last replay, and those whose outcome nobody knows."""
    event_created_at: datetime
    """With the id it finds the event in its partition."""
    config_revision: int
    type: str | None
    """None when the event was removed from the history: there is nothing left to send."""
    resource: str | None
    data: str | None
    """The record as JSON text, frozen in the writer's transaction."""
    expansions: str | None = None
    """Its related records by their names, as the text of a JSON object; None where nobody asked for any."""
    traceparent: str | None = None
    """The writer's trace (W3C Trace Context), if he named one."""

    @property
    def event_id(self) -> UUID:
        """The event that is owed."""
        return UUID(self.webhook_id)


class Answer(NamedTuple):
    """What a subscriber answered to one POST."""

    status: int
    body: bytes = b""
    """The first bytes only."""
    retry_after: int | None = None
    """Seconds that the answer asks us to wait."""


class FailureKind(StrEnum):
    """Why there is no complete answer."""

    RESOLVE = "resolve"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    BROKEN = "broken"
    OVERSIZED = "oversized"
    FORBIDDEN = "forbidden"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Failure:
    """A try without a complete answer; `message` is for people."""

    kind: FailureKind
    message: str
    status: int | None = None
    address: str | None = None
    """The forbidden one that a name led to: for the operator, not for who chose the URL."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The subscriber acknowledged: nothing is owed any more."""

    name: ClassVar = "delivered"
    reason: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again `after` seconds from the end of this try."""

    name: ClassVar = "retry"
    after: int
    reason: str


@dataclass(frozen=True, slots=True)
class Dead:
    """Out of tries: kept, shown, replayable."""

    name: ClassVar = "dead"
    reason: str


Outcome = Delivered | Retry | Dead


class Attempt(NamedTuple):
    """One finished try, ready to be settled."""

    delivery: Delivery
    outcome: Outcome
    status: int | None
    answer: bytes
    duration_ms: int
    at: datetime
    """When it began, by the database's clock. The same however often the settle is repeated."""
    failure: FailureKind | None = None
    """Why there was no complete answer, if there was none."""
