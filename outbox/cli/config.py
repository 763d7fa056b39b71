"""`outbox config …`: subscriptions, as commands. What a config may hold is decided in core/config_rules.py."""

import datetime as dt
import json
import math
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar
from uuid import UUID, uuid4

import click
from psycopg import AsyncConnection

from outbox import __version__
from outbox.cli import options, plain
from outbox.core import postback, signing
from outbox.core.config_document import FLAGS, to_document
from outbox.core.config_rules import FIELDS, Value, validate
from outbox.core.model import Answer, Delivered, EventType, Failure, PostbackConfig
from outbox.core.outcome import judge
from outbox.daemon.targets import Credentials
from outbox.errors import OutboxError, UsageError
from outbox.http.guard import Guard
from outbox.http.sender import Sender
from outbox.postgres import configs, expands
from outbox.postgres import signing as stored_secrets
from outbox.secrets import SecretBox
from outbox.settings import Settings, read_duration

T = TypeVar("T")

_PASSWORD = "OUTBOX_BASIC_AUTH_PASSWORD"  # noqa: S105 - the variable's name
_SHOWN_ANSWER = 500
"""Characters of an answer that are shown."""

# One flag per field of the contract, from its table. The password is none: a process list shows flags.
_FIELD_FLAGS = tuple(name for name in FIELDS if name != "basic_auth_password")

_id = click.argument("config_id", metavar="ID", type=click.UUID)


@click.group()
def config() -> None:
    """Add, show and change postback configs: what to watch and whom to tell."""


def _field_flags(*, defaults: bool) -> Callable[[options.Command], options.Command]:
    """Give a command a flag per field. `defaults`: whether what is not given has the contract's default."""

    def decorate(command: options.Command) -> options.Command:
        for name in reversed(_FIELD_FLAGS):
            field, flag = FIELDS[name], name.replace("_", "-")
            text = field.text
            if defaults and field.default:
                text += f" Default: {'yes' if field.default is True else field.default}."
            if name == "basic_auth_username":
                text += f" The password is {_PASSWORD}, or asked for."
            if field.kind == "boolean":
                command = click.option(f"--{flag}/--no-{flag}", name, default=None, help=text)(command)
            else:
                # Text, whatever the kind: the rules read it, and name all that is wrong at once.
                command = click.option(f"--{flag}", name, metavar=field.kind.upper(), help=text)(command)
        return click.option("--all-locations", is_flag=True, help="See the rows of all locations.")(command)

    return decorate


@config.command()
@options.settings("dsn", "secret_key", "min_attempt_interval", *options.DESTINATIONS)
@_field_flags(defaults=True)
@options.as_json
def add(settings: Settings, *, as_json: bool, all_locations: bool, **given: str | bool | None) -> None:
    """Add a config."""
    raw = _raw(given, all_locations=all_locations)
    fields = validate(
        raw,
        min_attempt_interval=settings.min_attempt_interval,
        any_location=all_locations,
        url_fault=Guard.of(settings).url_fault,
    )
    secrets = SecretBox(settings.secret_key)
    added = _run(settings, lambda conn: _add(conn, fields, secrets))
    _print(added, as_json=as_json)


async def _add(conn: AsyncConnection, fields: Mapping[str, Value], secrets: SecretBox) -> PostbackConfig:
    return await _examined(conn, await configs.add(conn, fields, secrets))


async def _examined(conn: AsyncConnection, subscription: PostbackConfig) -> PostbackConfig:
    """Warn of expands that are registered nowhere: they may come later, and until then nothing is embedded."""
    if names := await expands.unregistered(conn, subscription.resource, subscription.expands):
        click.echo(
            f"Warning: nothing is registered for {subscription.resource}: {', '.join(names)}. It is left out until "
            "outbox.register_expand() is called for it (see sql/README.md).",
            err=True,
        )
    return subscription


@config.command("list")
@options.settings("dsn")
@click.option("--location-id", help="Only those of this location.")
@click.option("--resource", help="Only those that watch this resource.")
@click.option("--is-active/--no-is-active", default=None, help="Only active or only inactive ones.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="How many at most.")
@options.as_json
def list_(settings: Settings, *, limit: int, as_json: bool, **filters: Any) -> None:  # noqa: ANN401 - click passes anything
    """List the configs, oldest first."""
    found = _run(settings, lambda conn: configs.find(conn, limit=limit + 1, **filters))
    if len(found) > limit:
        click.echo(f"There are more than {limit}: raise --limit or filter.", err=True)
        found = found[:limit]
    if as_json:
        options.print_json([to_document(each) for each in found])
    elif found:
        plain.print_table(
            ("ID", "LOCATION", "RESOURCE", "EVENTS", "STATE", "TRIES", "URL"), [_row(each) for each in found]
        )
    else:
        click.echo("There is no config. Make one with: outbox config add")


@config.command()
@options.settings("dsn")
@_id
@options.as_json
def show(settings: Settings, config_id: UUID, *, as_json: bool) -> None:
    """Show a config."""
    _print(_run(settings, lambda conn: configs.get(conn, config_id)), as_json=as_json)


@config.command()
@options.settings("dsn", "secret_key", "min_attempt_interval", *options.DESTINATIONS)
@_id
@_field_flags(defaults=False)
@click.option("--no-product-transaction-id", is_flag=True, help="Rows of every merchant account.")
@click.option("--no-rate-limit", is_flag=True, help="As many a second as there are.")
@click.option("--no-basic-auth", is_flag=True, help="Remove the user name and the password.")
@options.as_json
def edit(
    settings: Settings,
    config_id: UUID,
    *,
    as_json: bool,
    all_locations: bool,
    no_product_transaction_id: bool,
    no_rate_limit: bool,
    no_basic_auth: bool,
    **given: str | bool | None,
) -> None:
    """Change what is named, and nothing else."""
    if no_product_transaction_id and given["product_transaction_id"] is not None:
        raise UsageError("Use --product-transaction-id or --no-product-transaction-id, not both.")
    if no_rate_limit and given["rate_limit"] is not None:
        raise UsageError("Use --rate-limit or --no-rate-limit, not both.")
    if no_basic_auth and given["basic_auth_username"] is not None:
        raise UsageError("Use --basic-auth-username or --no-basic-auth, not both.")
    raw = _raw(given, all_locations=all_locations)
    if no_product_transaction_id:
        raw["product_transaction_id"] = None
    if no_rate_limit:
        raw["rate_limit"] = None
    if no_basic_auth:
        raw |= {"basic_auth_username": None, "basic_auth_password": None}
    if not raw:
        raise UsageError("Nothing to change was named. See: outbox config edit --help")
    _print(_run(settings, lambda conn: _edit(conn, config_id, raw, settings)), as_json=as_json)


async def _edit(conn: AsyncConnection, config_id: UUID, raw: Mapping[str, Value], settings: Settings) -> PostbackConfig:
    changes = validate(
        raw,
        min_attempt_interval=settings.min_attempt_interval,
        any_location=True,  # no location is given by --all-locations only
        current=await configs.get(conn, config_id),
        url_fault=Guard.of(settings).url_fault,
    )
    return await _examined(conn, await configs.edit(conn, config_id, changes, SecretBox(settings.secret_key)))


@config.command()
@options.settings("dsn")
@_id
def pause(settings: Settings, config_id: UUID) -> None:
    """Go on collecting what is owed, and send nothing until resumed."""
    _run(settings, lambda conn: configs.pause(conn, config_id))
    click.echo(f"Paused {config_id}. It sends again after: outbox config resume {config_id}")


@config.command()
@options.settings("dsn")
@_id
def resume(settings: Settings, config_id: UUID) -> None:
    """Send what was collected during the pause, and go on."""
    _run(settings, lambda conn: configs.resume(conn, config_id))
    click.echo(f"Resumed {config_id}.")


@config.command()
@options.settings("dsn")
@_id
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(settings: Settings, config_id: UUID, *, yes: bool) -> None:
    """Delete a config and all that it is still owed. Its history stays."""
    if not yes:
        click.confirm(f"Delete {config_id} and all that it is still owed?", abort=True)
    owed = _run(settings, lambda conn: configs.remove(conn, config_id))
    click.echo(f"Deleted {config_id}, and {plain.count(owed, 'delivery', 'deliveries')} that it was owed.")


@config.command()
@options.settings("dsn", "secret_key")
@_id
@click.option("--make", is_flag=True, help="Make the config's first secret and print it, once.")
@click.option("--rotate", is_flag=True, help="Make another secret and print it, once.")
@click.option("--remove", is_flag=True, help="Sign no more.")
@click.option("--overlap", help="How long the former secret signs as well; 0 ends all former ones now. Default: 24h.")
@options.as_json
def secret(
    settings: Settings, config_id: UUID, *, make: bool, rotate: bool, remove: bool, overlap: str | None, as_json: bool
) -> None:
    """Let a config's requests be signed, so that its receiver knows who sends them (Standard Webhooks 1.0).

    Give the receiver the secret that is printed: nobody can show it again. During the overlap of a rotation both
    secrets sign.
    """
    if make + rotate + remove != 1:
        raise UsageError("Say what to do with the secret: one of --make, --rotate and --remove.")
    if overlap is not None and not rotate:
        raise UsageError("--overlap goes with --rotate only.")
    seconds: float = signing.DEFAULT_OVERLAP
    if overlap is not None:
        seconds = read_duration("--overlap", overlap, least=0, most=signing.MOST_OVERLAP)
    box = SecretBox(settings.secret_key)
    if remove:
        signed = _run(settings, lambda conn: stored_secrets.remove(conn, config_id))
        if as_json:
            options.print_json({"removed": signed})
        else:
            click.echo(f"{config_id} signs no more." if signed else f"{config_id} did not sign.")
        return
    if make:
        made = _run(settings, lambda conn: stored_secrets.make(conn, config_id, box))
    else:
        made = _run(settings, lambda conn: stored_secrets.rotate(conn, config_id, box, overlap=math.ceil(seconds)))
    if as_json:
        options.print_json({"secret": made})
    else:
        click.echo(made)
        click.echo("The secret is shown this once.", err=True)


@config.command()
@options.settings("dsn", "secret_key", "request_timeout", *options.WAY_OUT)
@_id
@options.as_json
def test(settings: Settings, config_id: UUID, *, as_json: bool) -> None:
    """Send an example delivery now and show the answer. It is marked `webhook-test: 1`, and nothing is recorded.

    It goes the daemon's way, so give it the daemon's settings.
    """
    subscription = _run(settings, lambda conn: configs.get(conn, config_id))
    result, duration_ms = options.run_async(_send_example(subscription, settings))
    acknowledged = isinstance(judge(result, tries=1, number_of_attempts=1, attempt_interval=0), Delivered)
    error = None if isinstance(result, Answer) else f"{result.kind}: {result.message}"
    if isinstance(result, Failure) and result.address:
        error = f"{error} ({result.address})"
    answer = result.body.decode("utf-8", "replace")[:_SHOWN_ANSWER] if isinstance(result, Answer) else ""
    if as_json:
        options.print_json(
            {
                "acknowledged": acknowledged, "status": result.status, "duration_ms": duration_ms, "error": error,
                "answer": answer,
            }
        )  # fmt: skip
    else:
        click.echo(f"{plain.clean(error or f'status {result.status}')}, {duration_ms} ms")
        if answer:
            click.echo(plain.clean(answer))
    if not acknowledged:
        raise OutboxError("The example was not acknowledged: that takes a status from 200 to 299.")


async def _send_example(subscription: PostbackConfig, settings: Settings) -> tuple[Answer | Failure, int]:
    data = json.dumps(
        {"id": "test", "location_id": subscription.location_id, "test": True}, ensure_ascii=False, separators=(",", ":")
    )
    body = postback.form_body(EventType.CREATE, subscription.resource, 1, data)
    event_id, timestamp = str(uuid4()), int(time.time())
    credentials = Credentials.of(subscription, SecretBox(settings.secret_key))
    headers = postback.headers(
        event_id,
        timestamp=timestamp,
        user_agent=f"outbox/{__version__}",
        authorization=credentials.authorization,
        signature=credentials.signature(event_id, timestamp, body),
    )
    async with Sender.of(settings) as sender:
        began = time.monotonic()
        result = await sender.post(subscription.url, body, {**headers, "webhook-test": "1"})
        return result, round((time.monotonic() - began) * 1000)


def _raw(given: Mapping[str, str | bool | None], *, all_locations: bool) -> dict[str, Value]:
    """Return the fields that flags name, with the password when there is a user name."""
    raw: dict[str, Value] = {name: value for name, value in given.items() if value is not None}
    if all_locations:
        if "location_id" in raw:
            raise UsageError("Use --location-id or --all-locations, not both.")
        raw["location_id"] = None
    if "basic_auth_username" in raw:
        raw["basic_auth_password"] = _password()
    return raw


def _password() -> str:
    password = os.environ.get(_PASSWORD)
    if password is not None:
        return password
    if not sys.stdin.isatty():
        raise UsageError(
            f"--basic-auth-username needs a password: set {_PASSWORD}, or run it in a terminal to be asked."
        )
    # An empty password is one: some subscribers take a key as the user name and nothing else.
    entered = click.prompt(
        "Password", default="", show_default=False, hide_input=True, confirmation_prompt=True, err=True
    )
    return str(entered)


def _run(settings: Settings, work: Callable[[AsyncConnection], Coroutine[Any, Any, T]]) -> T:
    async def connected() -> T:
        async with options.connect(settings) as conn:
            return await work(conn)

    return options.run_async(connected())


def _print(subscription: PostbackConfig, *, as_json: bool) -> None:
    if as_json:
        options.print_json(to_document(subscription))
        return
    document = {
        **to_document(subscription),
        "location_id": _location(subscription),
        "basic_auth": "no" if subscription.basic_auth_username is None else "yes",
    }
    plain.print_fields([(name, plain.cell(_for_people(name, value))) for name, value in document.items()])


def _for_people(name: str, value: object) -> object:
    """Return a field of the API's form as a time or a yes, if it is one."""
    if isinstance(value, int) and name.endswith("_ts"):
        return dt.datetime.fromtimestamp(value, dt.UTC)
    return value == "1" if name in FLAGS else value


def _row(subscription: PostbackConfig) -> tuple[str, ...]:
    wanted = {"create": subscription.on_create, "update": subscription.on_update, "delete": subscription.on_delete}
    return (
        str(subscription.id),
        plain.clean(_location(subscription)),
        plain.clean(subscription.resource),
        ",".join(name for name, is_wanted in wanted.items() if is_wanted) or "none",
        plain.config_state(
            is_active=subscription.is_active, is_paused=subscription.paused_at is not None,
            circuit_is_open=subscription.circuit_opened_at is not None, disabled_reason=subscription.disabled_reason,
        ),
        f"{subscription.number_of_attempts} every {subscription.attempt_interval} s",
        plain.clean(subscription.url),
    )  # fmt: skip


def _location(subscription: PostbackConfig) -> str:
    return "(all)" if subscription.location_id is None else subscription.location_id
