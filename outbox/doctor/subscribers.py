"""Checks of whether anything can be sent to the configs: their secrets, their hosts. Nothing is sent."""

import psycopg

from outbox.core.finding import OK, PROBLEM, WARNING, Finding, and_more
from outbox.core.model import FailureKind
from outbox.http import hosts
from outbox.http.guard import Guard, is_numeric
from outbox.http.sender import endpoint
from outbox.postgres.diagnosis import queue
from outbox.secrets import SecretBox, SecretError
from outbox.settings import Settings

RESOLVE_WITHIN = 10.0
"""Seconds for all look-ups together."""

_HOSTS = 1000
_SHOWN = 10


async def credentials(settings: Settings, conn: psycopg.AsyncConnection) -> list[Finding]:
    """Whether OUTBOX_SECRET_KEY reads all that configs keep secret."""
    box = SecretBox(settings.secret_key)
    configs = await queue.sealed(conn)
    unreadable = [str(config_id) for config_id, tokens in configs if not _opens(box, tokens)]
    if unreadable:
        count = f"{len(unreadable)} of {len(configs)} configs with secrets"
        fault = "no key of OUTBOX_SECRET_KEY reads" if settings.secret_key else "OUTBOX_SECRET_KEY is not set to read"
        return [
            Finding(
                "secrets", PROBLEM, f"{count}: {fault} what they keep, so nothing is sent: {and_more(unreadable)}.",
                "Set the key that they were stored with (older keys after the newest, by commas), or store them anew: "
                "outbox config edit ID --basic-auth-username; outbox config secret ID --remove, then --make.",
            )
        ]  # fmt: skip
    if configs:
        return [Finding("secrets", OK, f"OUTBOX_SECRET_KEY reads what configs keep secret: {len(configs)}.")]
    return [Finding("secrets", OK, "No config keeps secrets.")]


def _opens(box: SecretBox, tokens: list[str]) -> bool:
    try:
        for token in tokens:
            box.open(token)
    except SecretError:
        return False
    return True


async def subscribers(
    settings: Settings, conn: psycopg.AsyncConnection, *, within: float = RESOLVE_WITHIN
) -> list[Finding]:
    """Whether the hosts of the active configs have addresses that may be posted to. Nothing is sent."""
    guard = Guard.of(settings)
    configs: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}
    found: list[Finding] = []
    no_host: list[str] = []
    for config_id, url in await queue.urls(conn):
        target = endpoint(url)
        if target is None:
            no_host.append(str(config_id))
        elif (refusal := guard.refusal(target)) and not (
            # A forbidden address is told below, once for its host.
            is_numeric(target.host) and guard.address_refusal(target.host)
        ):
            refused.setdefault(refusal, []).append(str(config_id))
        else:
            configs.setdefault(target.host, []).append(str(config_id))
    if no_host:
        found.append(
            Finding(
                "subscribers", WARNING, f"Nothing can be sent to the URL of {and_more(no_host)}.",
                "outbox config edit ID --url",
            )
        )  # fmt: skip
    found += [
        Finding(
            "subscribers", WARNING, f"Nothing is sent for {and_more(ids)}: {refusal}.",
            "Change the URL, or the daemon's OUTBOX_ALLOW_PORTS or OUTBOX_REQUIRE_HTTPS.",
        )
        for refusal, ids in refused.items()
    ]  # fmt: skip
    asked = sorted(configs, key=lambda host: -len(configs[host]))[:_HOSTS]
    failures = await hosts.unreachable(asked, guard, within=within)
    for host, failure in list(failures.items())[:_SHOWN]:
        found.append(
            Finding(
                "subscribers", WARNING, f"{host}: {failure.message} ({and_more(configs[host])}).",
                "If it is meant, name its network in the daemon's OUTBOX_ALLOW_NETWORKS; else remove the config."
                if failure.kind is FailureKind.FORBIDDEN
                else "Each try fails while it is so. If the host is gone, pause or remove the config.",
            )
        )  # fmt: skip
    if len(failures) > _SHOWN:
        found.append(Finding("subscribers", WARNING, f"And {len(failures) - _SHOWN} more hosts.", "outbox status"))
    if len(configs) > len(asked):
        found.append(Finding("subscribers", OK, f"{len(asked)} of {len(configs)} hosts were looked up."))
    if not found and not asked:
        return [Finding("subscribers", OK, "No config is active.")]
    return found or [Finding("subscribers", OK, f"Hosts: {len(asked)}, each with an address that may be posted to.")]
