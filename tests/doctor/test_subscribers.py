"""Checks of whether anything can be sent to the configs."""

import psycopg
from cryptography.fernet import Fernet

from outbox.core.finding import OK, PROBLEM, WARNING, Finding
from outbox.doctor.subscribers import credentials, subscribers
from outbox.secrets import SecretBox
from outbox.settings import Settings
from tests.daemons import LOOPBACK, add_config
from tests.findings import only

KEY, OTHER_KEY = Fernet.generate_key().decode(), Fernet.generate_key().decode()


async def test_credentials_are_read_with_the_key(aconn: psycopg.AsyncConnection, conn: psycopg.Connection) -> None:
    """An older key behind the newest is as good; a wrong one or none is a problem."""
    assert only(await credentials(Settings(), aconn)) == Finding("secrets", OK, "No config keeps secrets.")
    box = SecretBox([KEY])
    config = add_config(conn, "http://a.example/", basic_auth_username=box.seal("u"), basic_auth_password=box.seal("p"))
    add_config(conn, "http://a.example/", basic_auth_username=box.seal("u"), deleted_at="now")
    for keys in ((KEY,), (OTHER_KEY, KEY)):
        assert only(await credentials(Settings(secret_key=keys), aconn)).level is OK
    for wrong, fault in (
        (Settings(secret_key=(OTHER_KEY,)), "no key of OUTBOX_SECRET_KEY"),
        (Settings(), "OUTBOX_SECRET_KEY is not set"),
    ):
        found = only(await credentials(wrong, aconn))
        assert (found.level, fault in found.message, str(config) in found.message) == (PROBLEM, True, True)
        assert "1 of 1 configs" in found.message


async def test_hosts_that_can_not_be_posted_to_are_a_warning(
    aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """Each host is asked once for all its configs; an inactive one's is not."""
    assert only(await subscribers(Settings(), aconn)).message == "No config is active."
    first = add_config(conn, "http://127.0.0.1:8000/a")
    second = add_config(conn, "https://127.0.0.1/b?c")
    add_config(conn, "http://10.0.0.1/", is_active=False)
    found = only(await subscribers(Settings(), aconn))
    assert (found.level, "127.0.0.1 is a loopback address" in found.message) == (WARNING, True)
    assert f"{first}, {second}" in found.message
    assert "OUTBOX_ALLOW_NETWORKS" in (found.advice or "")
    assert only(await subscribers(Settings(allow_networks=LOOPBACK), aconn)).level is OK
    add_config(conn, "http://nowhere.invalid/")
    add_config(conn, "http://127.1/")
    numeric, name = await subscribers(Settings(allow_networks=LOOPBACK), aconn)
    assert "Nothing can be sent to the URL of" in numeric.message
    assert "nowhere.invalid: the host has no address" in name.message
    forbidden = add_config(conn, "http://a.example:22/")
    refused = " ".join(each.message for each in await subscribers(Settings(), aconn))
    assert f"Nothing is sent for {forbidden}: port 22 is not allowed" in refused
    strict = Settings(allow_networks=LOOPBACK, require_https=True)
    refused = " ".join(each.message for each in await subscribers(strict, aconn))
    assert f"Nothing is sent for {first}, " in refused
    assert ": http is not allowed, only https" in refused
    late = await subscribers(Settings(allow_networks=LOOPBACK), aconn, within=0)
    assert "nowhere.invalid: no answer of the resolver within 0 s" in " ".join(each.message for each in late)
