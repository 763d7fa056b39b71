"""Certificates for test servers: an authority of our own, what it signs, and self-signed ones. None is secret."""

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_SERVER, _CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
LOOPBACK = ("127.0.0.1", "localhost")

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Identity:
    """What a TLS server shows (PEM files), and the file with which a client can verify it."""

    certificate: Path
    key: Path
    ca_file: Path


class Authority:
    """A certificate authority that lives in `folder`; clients trust it through `ca_file`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name("outbox test authority")
        self._issued = 0
        certificate = _certificate(self._name, self._key, self._name, self._key, names=(), is_ca=True)
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(_pem(certificate))

    def issue(
        self, *names: str, from_day: int = -1, to_day: int = 1, is_client: bool = False, key: Key | None = None
    ) -> Identity:
        """Sign a server's certificate for these host names and addresses; by default, for the loopback ones.

        It is valid between the two days from now. `is_client`: a client's, for this name. `key`: one of its own.
        """
        self._issued += 1
        key = key or ec.generate_private_key(ec.SECP256R1())
        names = names or LOOPBACK
        certificate = _certificate(
            _common_name(names[0]), key, self._name, self._key,
            names=names, days=(from_day, to_day), usage=_CLIENT if is_client else _SERVER,
        )  # fmt: skip
        return _write(self._folder, f"issued-{self._issued}", certificate, key, self.ca_file)


def self_signed(folder: Path, *names: str) -> Identity:
    """Make the "bad" certificate: the right names (by default the loopback ones), vouched for by nobody else."""
    names = names or LOOPBACK
    key = ec.generate_private_key(ec.SECP256R1())
    name = _common_name(names[0])
    certificate = _certificate(name, key, name, key, names=names)
    return _write(folder, "self-signed", certificate, key, folder / "self-signed.pem")


def _certificate(
    subject: x509.Name,
    key: Key,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    names: tuple[str, ...],
    is_ca: bool = False,
    days: tuple[int, int] = (-1, 1),
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    first, last = (now + dt.timedelta(days=day) for day in days)
    # Key usage and both key identifiers, because Python 3.13 and later verify strictly by RFC 5280.
    key_usage = x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(key_usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not is_ca:
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
    return builder.sign(issuer_key, hashes.SHA256())


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(folder: Path, stem: str, certificate: x509.Certificate, key: Key, ca_file: Path) -> Identity:
    identity = Identity(folder / f"{stem}.pem", folder / f"{stem}.key", ca_file)
    identity.certificate.write_bytes(_pem(certificate))
    identity.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return identity
