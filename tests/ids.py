"""Ids of configs by a number, in the order of which they sort."""

from uuid import UUID

from outbox.core.model import ConfigId


def config_id(number: int) -> ConfigId:
    """Return the id of the config with this number."""
    return ConfigId(str(UUID(int=number)))


def config_number(of: ConfigId) -> int:
    """Return the number of a config whose id this is."""
    return UUID(of).int
