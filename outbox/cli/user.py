"""`outbox user …`: who may use the HTTP API, and for which locations."""

from uuid import UUID

import click

from outbox.cli import options, plain
from outbox.core.model import User
from outbox.errors import UsageError
from outbox.postgres import users
from outbox.settings import Settings

_id = click.argument("user_id", metavar="ID", type=click.UUID)


@click.group()
def user() -> None:
    """Add, list and remove users of the HTTP API."""


@user.command()
@options.settings("dsn")
@click.argument("name")
@click.option("--location", "locations", multiple=True, help="A location that the user sees. Again for more.")
@click.option("--operator", is_flag=True, help="The user sees all locations.")
@options.as_json
def add(settings: Settings, *, name: str, locations: tuple[str, ...], operator: bool, as_json: bool) -> None:
    """Add a user and print its key, once: only a hash is kept."""
    if operator == bool(locations):
        raise UsageError("Name the user's locations with --location, or give --operator: one of the two.")
    added, key = options.run_async(_add(settings, name, None if operator else locations))
    _print_key(added.id, key, as_json=as_json)


async def _add(settings: Settings, name: str, locations: tuple[str, ...] | None) -> tuple[User, str]:
    async with options.connect(settings) as conn:
        return await users.add(conn, name, locations)


@user.command("list")
@options.settings("dsn")
@options.as_json
def list_(settings: Settings, *, as_json: bool) -> None:
    """List the users, oldest first."""
    found = options.run_async(_list(settings))
    if as_json:
        options.print_json([_document(each) for each in found])
    elif found:
        rows = [(str(each.id), plain.cell(each.name), _locations(each)) for each in found]
        plain.print_table(("ID", "NAME", "LOCATIONS"), rows)
    else:
        click.echo("There is no user. Make one with: outbox user add")


async def _list(settings: Settings) -> list[User]:
    async with options.connect(settings) as conn:
        return await users.list_(conn)


@user.command()
@options.settings("dsn")
@_id
@options.as_json
def rotate(settings: Settings, user_id: UUID, *, as_json: bool) -> None:
    """Give a user another key and print it, once. The old one ends within seconds."""
    _print_key(user_id, options.run_async(_rotate(settings, user_id)), as_json=as_json)


async def _rotate(settings: Settings, user_id: UUID) -> str:
    async with options.connect(settings) as conn:
        return await users.rotate(conn, user_id)


@user.command()
@options.settings("dsn")
@_id
def remove(settings: Settings, user_id: UUID) -> None:
    """Remove a user. It can sign in no more, within seconds."""
    options.run_async(_remove(settings, user_id))
    click.echo(f"Removed {user_id}.")


async def _remove(settings: Settings, user_id: UUID) -> None:
    async with options.connect(settings) as conn:
        await users.remove(conn, user_id)


def _print_key(user_id: UUID, key: str, *, as_json: bool) -> None:
    if as_json:
        options.print_json({"user_id": user_id, "user_api_key": key})
    else:
        plain.print_fields([("user-id", str(user_id)), ("user-api-key", key)])
        click.echo("The key is shown this once.", err=True)


def _document(each: User) -> dict[str, object]:
    return {
        "user_id": each.id,
        "name": each.name,
        "location_ids": each.location_ids,
        "is_operator": each.is_operator,
    }


def _locations(each: User) -> str:
    return "all" if each.location_ids is None else plain.cell(", ".join(each.location_ids))
