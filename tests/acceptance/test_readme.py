"""README.md tells of the commands and settings that there are, with their defaults, and of no other."""

import re
from pathlib import Path

import click
import pytest

from outbox.cli.main import main
from outbox.settings import BY_NAME, variable

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def commands(group: click.Group, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found: dict[tuple[str, ...], click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found[*path, name] = command
        if isinstance(command, click.Group):
            found |= commands(command, (*path, name))
    return found


def test_the_settings_are_those_that_commands_take() -> None:
    """A setting is in the table when a command has its flag, or when it is a secret and has none."""
    used = {
        option.envvar
        for command in commands(main).values()
        for option in command.params
        if isinstance(option, click.Option) and isinstance(option.envvar, str)
    }
    used |= {variable(name) for name, setting in BY_NAME.items() if setting.metadata["secret"]}
    defaults = {variable(name): setting.metadata["default"] or "" for name, setting in BY_NAME.items()}
    told = dict(re.findall(r"^\| `(OUTBOX_\w+)` \| `?(.*?)`? +\|", README, re.MULTILINE))
    told |= dict(re.findall(r"^\| `(OUTBOX_\w+)` \|( )\|", README, re.MULTILINE))
    assert {name: default.strip() for name, default in told.items()} == {name: defaults[name] for name in used}


@pytest.mark.parametrize("words", sorted(set(re.findall(r"^ {4}outbox (.+?)(?: {2,}#.*)?$", README, re.MULTILINE))))
def test_each_command_line_has_its_command_and_flags(words: str) -> None:
    """What stands in README.md to be typed is a command with these flags."""
    known = commands(main)
    parts = tuple(words.split())
    path = parts[:2] if parts[:2] in known else parts[:1]
    flags = {flag for option in known[path].params for flag in option.opts}
    assert {word for word in parts if word.startswith("--")} <= flags


def test_each_command_is_told_of() -> None:
    """The table of commands names all of them."""
    [table] = re.findall(r"^## Commands\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    missing = [" ".join(path) for path in commands(main) if f"`{path[-1]}" not in table and f" {path[-1]}" not in table]
    assert missing == []
