"""The walk: the source document's workflow and what else the contract promises, step by step, printed and checked."""

import asyncio
import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID

import click
import psycopg

from outbox.core.config_document import to_document
from outbox.core.config_rules import validate
from outbox.core.model import PostbackConfig
from outbox.demo import contacts
from outbox.demo.contacts import LOCATION, Record, as_json
from outbox.demo.contract import Expected, faults, fields
from outbox.demo.receiver import Received, Receiver
from outbox.postgres import configs
from outbox.postgres.figures import figures
from outbox.postgres.history import Summary, deliveries
from outbox.postgres.replay import replay
from outbox.postgres.selection import Filter, State
from outbox.secrets import SecretBox

_PATIENCE = 30.0
"""Seconds after which something that must come is missing."""
_PAUSE = 2.0
"""Seconds between two changes after the walk."""
_GLANCE = 0.05
"""Seconds between two looks at the database while something is awaited there."""
_WIDTH = 100
_LATER, _LATER_PATH = "later", "/later"
_MAIN, _FLAKY = "/receiver", "/flaky"
_PEOPLE = (("Ada", "Lovelace"), ("Zoë", "Müller"), ("Grace", "Hopper"), ("Ödön", "Szabó"), ("Mary", "O'Neil"))

# In one statement, as the daemon moves a row from the one to the other in one.
_CAPTURED = "select (select count(*) from outbox.outbox) + (select count(*) from outbox.events)"


class _RollBackError(Exception):
    """What makes the application roll its transaction back."""


class Walk:
    """One walk: `run`, then perhaps `go_on`. It counts in `faults` what was not as the contract says.

    `app` is a connection of the application's role, `conn` one of the outbox's, both in autocommit; `say` prints a
    line. A daemon must run meanwhile, and the receiver listen.
    """

    def __init__(
        self,
        app: psycopg.AsyncConnection,
        conn: psycopg.AsyncConnection,
        receiver: Receiver,
        min_attempt_interval: int,
        say: Callable[[str], None],
    ) -> None:
        self._app = app
        self._conn = conn
        self._receiver = receiver
        self._min_attempt_interval = min_attempt_interval
        self._say = say
        self._steps = itertools.count(1)
        self._webhook_ids: set[str] = set()
        self._posts = 0
        self.faults = 0
        self.is_done = False

    async def run(self) -> None:
        """Walk through all steps."""
        began = time.monotonic()
        await self._config_is_created()
        contact = await self._contact_is_created()
        contact = await self._contact_is_updated(contact)
        await self._nothing_is_sent(contact)
        await self._contact_is_deleted(contact)
        await self._receiver_fails_twice()
        await self._delivery_dies_and_is_replayed()
        await self._nothing_is_left()
        self._say(f"\nThe walk took {time.monotonic() - began:.1f} s.")
        self.is_done = True

    async def go_on(self) -> None:
        """Change contacts now and then, until it is cancelled."""
        self._say(f"\nIt goes on with a change every {_PAUSE:.0f} seconds, until Ctrl-C.")
        # At a location of its own: what somebody does with the API meanwhile is not taken for it.
        await self._add_config(_LATER, self._receiver.url + _LATER_PATH, number_of_attempts=1, attempt_interval=300)
        for first_name, last_name in itertools.cycle(_PEOPLE):
            since = time.time()
            contact = await contacts.create(self._app, location_id=_LATER, first_name=first_name, last_name=last_name)
            await self._arrives("CREATE", contact, since, _LATER_PATH)
            await asyncio.sleep(_PAUSE)
            since = time.time()
            contact = await contacts.change(self._app, contact["id"], email=f"{first_name.lower()}@example.com")
            await self._arrives("UPDATE", contact, since, _LATER_PATH)
            await asyncio.sleep(_PAUSE)
            since = time.time()
            await self._arrives("DELETE", await contacts.delete(self._app, contact["id"]), since, _LATER_PATH)
            await asyncio.sleep(_PAUSE)

    async def _config_is_created(self) -> None:
        self._step("A subscriber asks for the contacts of its location: a postback config.")
        config = await self._add_config(
            LOCATION, self._receiver.url + _MAIN, number_of_attempts=1, attempt_interval=300
        )
        for name, value in to_document(config).items():
            self._show(f"{name:22} {value}")

    async def _contact_is_created(self) -> Record:
        self._step("The application creates a contact: one INSERT into its own table.")
        since = time.time()
        contact = await contacts.create(self._app, last_name="Jones", location_id=LOCATION)
        self._show(f"last_name Jones, location_id {LOCATION}; it got the id {contact['id']}")
        self._step("The postback arrives.")
        await self._arrives("CREATE", contact, since, in_full=True)
        return contact

    async def _contact_is_updated(self, contact: Record) -> Record:
        self._step("The application updates the contact, with characters that JSON and forms escape.")
        since = time.time()
        contact = await contacts.change(
            self._app, contact["id"], first_name="Zoë", company_name='Söhne & "Co" / 100 % + 1', contact_balance="12.50"
        )
        await self._arrives("UPDATE", contact, since)
        return contact

    async def _nothing_is_sent(self, contact: Record) -> None:
        before = await self._captured()
        self._step("An UPDATE that changes nothing sends nothing.")
        await contacts.save_unchanged(self._app, contact["id"])
        self._check("nothing was captured", _difference("captured events", before, await self._captured()))
        self._step("A transaction that is rolled back sends nothing.")
        with suppress(_RollBackError):
            async with self._app.transaction():
                await contacts.create(self._app, last_name="Never", location_id=LOCATION)
                await contacts.delete(self._app, contact["id"])
                raise _RollBackError
        self._check("nothing was captured", _difference("captured events", before, await self._captured()))

    async def _contact_is_deleted(self, contact: Record) -> None:
        self._step("The application deletes the contact: its last state is sent.")
        since = time.time()
        await self._arrives("DELETE", await contacts.delete(self._app, contact["id"]), since)
        self._show(f"id {contact['id']}")

    async def _receiver_fails_twice(self) -> None:
        self._step("Another location's receiver fails twice with 500, then accepts; its config has 3 attempts.")
        location, interval = "a-location-with-a-flaky-receiver", self._min_attempt_interval
        await self._add_config(location, self._receiver.url + _FLAKY, number_of_attempts=3, attempt_interval=interval)
        self._receiver.fail(_FLAKY, times=2)
        since = time.time()
        contact = await contacts.create(self._app, last_name="Lue", location_id=location)
        tries: list[Received] = []
        for number in (1, 2, 3):
            expected_id = tries[0].headers.get("webhook-id") if tries else None
            arrived = await self._arrives("CREATE", contact, since, _FLAKY, number=number, webhook_id=expected_id)
            if arrived is None:
                return
            tries.append(arrived)
        waits = [later.at - earlier.at for earlier, later in itertools.pairwise(tries)]
        # The database counts the wait in milliseconds, from the end of the try.
        hasty = [
            f"expected {interval} s or more between tries, came {wait:.3f}" for wait in waits if wait < interval - 0.01
        ]
        self._check(f"{interval} s or more between tries: " + ", ".join(f"{wait:.2f} s" for wait in waits), hasty)

    async def _delivery_dies_and_is_replayed(self) -> None:
        self._step("A third location's receiver is down: the delivery is out of tries, and dead.")
        location = "a-location-whose-receiver-is-down"
        async with Receiver() as receiver:
            config = await self._add_config(
                location, receiver.url + _MAIN, number_of_attempts=1, attempt_interval=self._min_attempt_interval
            )
            since = time.time()
            contact = await contacts.create(self._app, last_name="Patient", location_id=location)
            dead = await self._dead(config.id)
            if dead is None:
                return
            self._show(f"dead after {dead.attempts} try: {dead.last_error}; event {dead.event_id}")
            self._step("The receiver is back, and what is dead is replayed.")
            await receiver.listen()
            replayed = await replay(self._conn, Filter(states=(State.DEAD,), config=config.id))
            self._check("one delivery was replayed", _difference("replayed deliveries", 1, replayed))
            await self._arrives(
                "CREATE", contact, since, receiver=receiver, number=dead.attempts + 1, webhook_id=str(dead.event_id)
            )

    async def _nothing_is_left(self) -> None:
        self._step("Nothing else was sent, and nothing is owed any more.")
        owed = await self._owed()
        deadline = time.monotonic() + _PATIENCE
        while owed and time.monotonic() < deadline:
            await asyncio.sleep(_GLANCE)
            owed = await self._owed()
        self._check("no delivery is owed", _difference("deliveries owed", 0, owed))
        self._check(
            f"{self._posts} POSTs arrived", _difference("POSTs at this receiver", self._posts, self._receiver.count)
        )

    async def _add_config(
        self, location: str, url: str, *, number_of_attempts: int, attempt_interval: int
    ) -> PostbackConfig:
        # The source document's example, but for what the step is about.
        asked = {
            "attempt_interval": attempt_interval,
            "basic_auth_username": None,
            "basic_auth_password": None,
            "expands": "",
            "format": "api-default",
            "is_active": "1",
            "location_id": location,
            "number_of_attempts": number_of_attempts,
            "on_create": "1",
            "on_delete": "1",
            "on_update": "1",
            "resource": contacts.RESOURCE,
            "url": url,
        }
        valid = validate(asked, min_attempt_interval=self._min_attempt_interval)
        return await configs.add(self._conn, valid, SecretBox([]))

    async def _arrives(
        self,
        event_type: str,
        contact: Record,
        since: float,
        path: str = _MAIN,
        *,
        receiver: Receiver | None = None,
        number: int = 1,
        webhook_id: str | None = None,
        in_full: bool = False,
    ) -> Received | None:
        """Wait for a postback, print it and what is wrong with it; None if it did not come."""
        try:
            received = await (receiver or self._receiver).next(path, _PATIENCE)
        except TimeoutError:
            self._check(f"{event_type} arrived", [f"expected a POST to {path} within {_PATIENCE:.0f} s, none came"])
            return None
        if receiver is None:
            self._posts += 1
        found = faults(received, Expected(event_type, number, as_json(contact), since, webhook_id))
        got = received.headers.get("webhook-id", "")
        if webhook_id is None and got in self._webhook_ids:
            found.append(f"webhook-id: expected one that no other event had, came {got} again")
        self._webhook_ids.add(got)
        if in_full:
            self._show_in_full(received)
        name = " ".join(filter(None, (contact["first_name"], contact["last_name"])))
        self._check(f"{event_type} {name!r}, try {number}, answered {received.status}, webhook-id {got}", found)
        return received

    async def _dead(self, config_id: UUID) -> Summary | None:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            found = await deliveries(self._conn, Filter(states=(State.DEAD,), config=config_id), limit=1)
            if found:
                return found[0]
            await asyncio.sleep(_GLANCE)
        self._check("it is dead", [f"expected a dead delivery within {_PATIENCE:.0f} s, there is none"])
        return None

    async def _owed(self) -> int:
        now = await figures(self._conn)
        return now.unrouted + now.pending + now.dead

    async def _captured(self) -> int:
        row = await (await self._conn.execute(_CAPTURED)).fetchone()
        return row[0] if row else 0

    def _show_in_full(self, received: Received) -> None:
        self._show(f"POST {received.path} HTTP/1.1")
        for name, value in received.headers.items():
            self._show(f"{name}: {value}")
        self._show("")
        with suppress(ValueError):
            for name, value in fields(received.body):
                self._show(f"{name} = {value}")

    def _step(self, title: str) -> None:
        self._say("\n" + click.style(f"{next(self._steps):2}  {title}", bold=True))

    def _show(self, text: str) -> None:
        for start in range(0, len(text) or 1, _WIDTH):
            self._say(f"    {text[start : start + _WIDTH]}")

    def _check(self, what: str, found: list[str]) -> None:
        self.faults += len(found)
        mark = click.style("WRONG", fg="red", bold=True) if found else click.style("ok", fg="green")
        self._say(f"    {mark}  {what}")
        for fault in found:
            self._show(f"  {fault}")


def _difference(what: str, expected: int, came: int) -> list[str]:
    return [] if expected == came else [f"{what}: expected {expected}, came {came}"]
