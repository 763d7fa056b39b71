"""`outbox status`: how the outbox fares, over all and for each config."""

import dataclasses

import click

from outbox.cli import options, plain
from outbox.postgres.figures import ConfigHealth, Figures, config_health, figures
from outbox.settings import Settings

_ERROR_WIDTH = 60


@click.command()
@options.settings("dsn")
@options.as_json
def status(settings: Settings, *, as_json: bool) -> None:
    """Show what is unrouted, owed, due and dead, and each config's last success and failure."""
    found, configs = options.run_async(_read(settings))
    if as_json:
        options.print_json(
            {**dataclasses.asdict(found), "configs": [dataclasses.asdict(config) for config in configs]},
        )
        return
    plain.print_fields(
        [
            ("schema version", str(found.schema_version)),
            ("unrouted", str(found.unrouted)),
            ("pending", str(found.pending)),
            ("due", f"{found.due} (oldest for {found.oldest_due_s:.0f} s)" if found.due else "0"),
            ("held", f"{found.held} (paused and inactive configs)" if found.held else "0"),
            ("dead", f"{found.dead} (outbox deliveries --state dead)" if found.dead else "0"),
            ("configs", str(found.configs)),
            ("open circuits", f"{found.open_circuits} (they get probes only)" if found.open_circuits else "0"),
            ("disabled", f"{found.disabled} (did nothing but fail: outbox config list)" if found.disabled else "0"),
        ]
    )
    if configs:
        click.echo()
        plain.print_table(
            (
                "CONFIG", "LOCATION", "RESOURCE", "STATE", "PENDING", "DUE", "DEAD",
                "LAST SUCCESS", "LAST FAILURE", "URL",
            ),
            [_row(config) for config in configs],
        )  # fmt: skip


async def _read(settings: Settings) -> tuple[Figures, list[ConfigHealth]]:
    async with options.connect(settings) as conn:
        return await figures(conn), await config_health(conn)


def _row(config: ConfigHealth) -> tuple[str, ...]:
    failure = plain.cell(config.last_failure_at)
    if config.last_failure is not None:
        failure += f" {plain.cell(config.last_failure, width=_ERROR_WIDTH)}"
    return (
        str(config.id),
        "(all)" if config.location_id is None else plain.cell(config.location_id),
        plain.cell(config.resource),
        plain.config_state(
            is_active=config.is_active, is_paused=config.is_paused, circuit_is_open=config.circuit_is_open,
            disabled_reason=config.disabled_reason,
        ),
        str(config.pending),
        str(config.due),
        str(config.dead),
        plain.cell(config.last_success_at),
        failure,
        plain.cell(config.url),
    )  # fmt: skip
