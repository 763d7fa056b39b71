"""TLS is verified always: authority, name, dates, version; with real certificates and real handshakes."""

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import subprocess
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from outbox.core.model import Answer, Failure, FailureKind
from outbox.errors import UsageError
from outbox.http.resolver import AddressInfo
from outbox.http.sender import Sender
from outbox.settings import read
from tests.certificates import Authority, Identity
from tests.receiver import Receiver

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
BODY = b"type=CREATE"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that no system trusts."""
    return Authority(tmp_path)


def looked_up(_host: str, port: int) -> list[AddressInfo]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


def in_one_file(identity: Identity, password: bytes | None = None) -> Path:
    """Return a PEM file of a certificate and its key."""
    key = identity.key.read_bytes()
    if password:
        loaded = serialization.load_pem_private_key(key, None)
        key = loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password),
        )
    file = identity.certificate.with_suffix(".both")
    file.write_bytes(identity.certificate.read_bytes() + key)
    return file


def words(result: Answer | Failure) -> str:
    assert isinstance(result, Failure), result
    assert result.kind is FailureKind.TLS, result
    return result.message


async def test_a_private_authority_takes_a_setting(authority: Authority) -> None:
    """With OUTBOX_CA_FILE what it signed is accepted; without, not even the request's head goes out."""
    with Receiver(tls=authority.issue()) as receiver:
        settings = read({"dsn": "dbname=x", "ca_file": str(authority.ca_file), "allow_networks": "127.0.0.0/8"})
        async with Sender.of(settings) as sender:
            assert await sender.post(receiver.url, BODY, {}) == Answer(200)
        async with Sender.of(read({"dsn": "dbname=x", "allow_networks": "127.0.0.0/8"})) as sender:
            assert "unable to get local issuer certificate" in words(await sender.post(receiver.url, BODY, {}))
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("days", "names", "message"),
    [
        ((-3, -1), ("sub.example",), "certificate has expired"),
        ((1, 2), ("sub.example",), "certificate is not yet valid"),
        ((-1, 1), ("other.example",), "Hostname mismatch, certificate is not valid for 'sub.example'"),
        ((-1, 1), ("*.sub.example",), "Hostname mismatch, certificate is not valid for 'sub.example'"),
        ((-1, 1), ("127.0.0.1",), "Hostname mismatch, certificate is not valid for 'sub.example'"),
        ((-1, 1), ("sub.example",), None),
    ],
)
async def test_names_and_dates_are_checked(
    authority: Authority, days: tuple[int, int], names: tuple[str, ...], message: str | None
) -> None:
    """The certificate must be for the host that the URL names, now."""
    with Receiver(tls=authority.issue(*names, from_day=days[0], to_day=days[1])) as receiver:
        url = receiver.url.replace("127.0.0.1", "sub.example")
        async with Sender(timeout=30, allow_networks=LOOPBACK, ca_file=authority.ca_file, look_up=looked_up) as sender:
            result = await sender.post(url, BODY, {})
    assert result == Answer(200) if message is None else message in words(result)
    assert len(receiver.requests) == (message is None)


@pytest.mark.parametrize("host", ["sub.example", "Sub.Example", "sub.example."])
async def test_the_server_is_told_the_name(authority: Authority, host: str) -> None:
    """SNI names the host, in lower case and without a final dot, by which the certificate is checked as well."""
    told: list[str | None] = []

    def prepare(context: ssl.SSLContext) -> None:
        context.sni_callback = lambda _socket, name, _context: told.append(name)

    with Receiver(tls=authority.issue("sub.example"), prepare=prepare) as receiver:
        async with Sender(timeout=30, allow_networks=LOOPBACK, ca_file=authority.ca_file, look_up=looked_up) as sender:
            assert await sender.post(receiver.url.replace("127.0.0.1", host), BODY, {}) == Answer(200)
    assert told == ["sub.example"]


@contextlib.contextmanager
def no_warning_of_old_versions() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.mark.parametrize(
    ("version", "accepted"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
async def test_tls_1_2_is_the_least(authority: Authority, version: ssl.TLSVersion, *, accepted: bool) -> None:
    """A server that speaks nothing newer than 1.1 gets nothing, although others can talk to it."""

    def only(context: ssl.SSLContext) -> None:
        with no_warning_of_old_versions():
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version

    with Receiver(tls=authority.issue(), prepare=only) as receiver:
        old = ssl.create_default_context(cafile=authority.ca_file)
        only(old)
        with (
            socket.create_connection(("127.0.0.1", int(receiver.url.rpartition(":")[2]))) as plain,
            old.wrap_socket(plain, server_hostname="localhost") as shaken,
        ):
            assert shaken.version() == version.name.replace("_", ".")
        async with Sender(timeout=30, allow_networks=LOOPBACK, ca_file=authority.ca_file) as sender:
            result = await sender.post(receiver.url, BODY, {})
    assert result == Answer(200) if accepted else "TLS failed: " in words(result)
    assert len(receiver.requests) == accepted


def numbers_for_dhe(folder: Path) -> Path:
    file = folder / "dh.pem"
    subprocess.run(
        ["openssl", "genpkey", "-genparam", "-algorithm", "DH", "-pkeyopt", "group:ffdhe2048", "-out", str(file)],
        check=True,
    )
    return file


async def test_no_server_chooses_the_numbers_of_a_key_exchange(authority: Authority) -> None:
    """With DHE it does, and large ones hold up all other subscribers: a server that insists on it gets nothing."""
    file = numbers_for_dhe(authority.ca_file.parent)

    def only_dhe(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("DHE-RSA-AES128-GCM-SHA256")
        context.load_dh_params(str(file))

    identity = authority.issue(key=rsa.generate_private_key(65537, 2048))
    with Receiver(tls=identity, prepare=only_dhe) as receiver:
        lenient = ssl.create_default_context(cafile=authority.ca_file)
        lenient.set_ciphers("DHE-RSA-AES128-GCM-SHA256")
        with (
            socket.create_connection(("127.0.0.1", int(receiver.url.rpartition(":")[2]))) as plain,
            lenient.wrap_socket(plain, server_hostname="localhost") as shaken,
        ):
            assert shaken.cipher() is not None
        async with Sender(timeout=30, allow_networks=LOOPBACK, ca_file=authority.ca_file) as sender:
            assert "TLS failed: " in words(await sender.post(receiver.url, BODY, {}))
    assert receiver.requests == []


@contextlib.contextmanager
def talkative(identity: Identity) -> Iterator[tuple[int, IO[str], Iterator[str]]]:
    """Give the port of OpenSSL's own server, what to type commands into, and the lines it prints of each message."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with subprocess.Popen(
        [
            *("openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-tls1_2", "-msg"),
            *("-cert", str(identity.certificate), "-key", str(identity.key)),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1,
    ) as server:  # fmt: skip
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            said = iter(server.stdout.readline, "")
            _until(said, "ACCEPT")
            yield port, server.stdin, said
        finally:
            server.kill()


async def test_one_handshake_is_enough_for_a_connection(authority: Authority) -> None:
    """A server that asks for another one is told no: each costs our processor more than a POST does."""
    with talkative(authority.issue()) as (port, commands, said):
        async with Sender(timeout=30, allow_networks=LOOPBACK, ca_file=authority.ca_file) as sender:
            post = asyncio.create_task(sender.post(f"https://127.0.0.1:{port}/", BODY, {}))
            await asyncio.to_thread(_until, said, "POST / HTTP/1.1")
            commands.write("R\n")
            answer = await asyncio.to_thread(_until, said, "ClientHello", "no_renegotiation")
            post.cancel()
    assert "no_renegotiation" in answer


def _until(lines: Iterator[str], *words: str) -> str:
    """Read on to a line that has one of these words."""
    for line in lines:
        if any(word in line for word in words):
            return line
    raise AssertionError(words)


async def test_no_variable_has_the_keys_of_connections_written_down(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSLKEYLOGFILE means nothing to us: with its file, all that was sent could be read."""
    file = authority.ca_file.with_name("keys.log")
    monkeypatch.setenv("SSLKEYLOGFILE", str(file))
    with Receiver(tls=authority.issue()) as receiver:
        async with Sender(timeout=30, allow_networks=LOOPBACK, ca_file=authority.ca_file) as sender:
            assert await sender.post(receiver.url, BODY, {}) == Answer(200)
    assert not file.exists()


@contextlib.contextmanager
def insisting(identity: Identity, version: ssl.TLSVersion, count: int) -> Iterator[tuple[str, list[object]]]:
    """Give the URL of a server that insists on a certificate, and whose it accepted, for `count` connections.

    A blocking one, because asyncio's closes the connection before its alert has gone out.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    context.minimum_version = context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(identity.ca_file)
    accepted: list[object] = []

    def serve(listener: socket.socket) -> None:
        for _ in range(count):
            client, _ = listener.accept()
            with context.wrap_socket(client, server_side=True, do_handshake_on_connect=False) as shaken:
                try:
                    shaken.do_handshake()
                except ssl.SSLError:
                    while os.read(shaken.fileno(), 1 << 16):  # until the client has read the alert and gone
                        pass
                else:
                    accepted.append(dict(shaken.getpeercert() or {})["subject"])
                    shaken.recv(1 << 16)
                    shaken.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        served = thread.submit(serve, listener)
        yield f"https://127.0.0.1:{listener.getsockname()[1]}", accepted
        served.result()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_certificate_is_shown_to_who_asks(authority: Authority, version: ssl.TLSVersion) -> None:
    """With OUTBOX_CLIENT_CERTIFICATE; a server that insists refuses us without it, and one that trusts another."""
    mine = in_one_file(authority.issue("daemon", is_client=True))
    (mine.parent / "other").mkdir()
    strange = in_one_file(Authority(mine.parent / "other").issue("stranger", is_client=True))
    with insisting(authority.issue(), version, 3) as (url, accepted):
        for certificate in (mine, None, strange):
            given = {"dsn": "dbname=x", "ca_file": str(authority.ca_file), "allow_networks": "127.0.0.0/8"}
            settings = read(given | ({"client_certificate": str(certificate)} if certificate else {}))
            async with Sender.of(settings) as sender:
                result = await sender.post(url, BODY, {})
            if certificate is mine:
                assert result == Answer(204)
            else:
                assert "TLS failed: " in words(result)
                assert "alert" in words(result)
    assert accepted == [((("commonName", "daemon"),),)]


@pytest.mark.parametrize("content", [None, "no PEM", "certificate", "encrypted"])
def test_a_client_certificate_that_can_not_be_used(authority: Authority, content: str | None) -> None:
    """It stops the start with one message that names the setting, and asks no terminal for a password."""
    identity = authority.issue("daemon", is_client=True)
    file = identity.certificate.with_name("client.pem")
    if content == "certificate":
        file.write_bytes(identity.certificate.read_bytes())
    elif content == "encrypted":
        file = in_one_file(identity, b"password")
    elif content:
        file.write_text(content)
    with pytest.raises(UsageError, match=r"OUTBOX_CLIENT_CERTIFICATE: .* is not a readable PEM file of a certificate"):
        read({"dsn": "dbname=x", "client_certificate": str(file)})
    with pytest.raises(UsageError, match="is no readable PEM file of a certificate and its key"):
        Sender(timeout=1, client_certificate=file)
