"""Numbers of `outbox top` in few letters, six at most."""

from outbox.core.activity import ConfigLook

_THOUSAND = 1000
_AS_IT_IS = 100_000
_TEN = 10


def compact(number: float) -> str:
    """Return a count: `99999`, `123k`, `1.2M`."""
    if number < _AS_IT_IS:
        return f"{number:.0f}"
    for unit in "kMG":
        number /= _THOUSAND
        # Rounded up it could have one digit too many.
        if round(number) < _THOUSAND:
            return f"{number:.1f}{unit}" if round(number, 1) < _TEN else f"{number:.0f}{unit}"
    return "many"


def rate(per_second: float | None) -> str:
    """Return a rate: `0`, `0.3`, `12.0`, `1234`; `-` when it is not known."""
    if per_second is None:
        return "-"
    if per_second == 0:
        return "0"
    return f"{per_second:.1f}" if per_second < _THOUSAND else compact(per_second)


def milliseconds(number: int | None) -> str:
    """Return a duration: `12ms`, `3.4s`; `-` when there is none."""
    if number is None:
        return "-"
    return f"{number}ms" if number < _THOUSAND else f"{number / _THOUSAND:.1f}s"


def age(seconds: float) -> str:
    """Return a time that has passed: `0s`, `59s`, `12m`, `3h`, `2d`."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def state(config: ConfigLook) -> str:
    """Return how a config stands, in one word."""
    if not config.is_active:
        return "inactive" if config.disabled_reason is None else "disabled"
    if config.is_paused:
        return "paused"
    return "circuit" if config.circuit_is_open else "active"
