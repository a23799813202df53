"""TLS certificates for local use: an authority of one's own, and certificates by it for a server, a Kafka broker (which
is a client of other brokers too) and a client.

All are EC P-256. The authority is made once and signs anew whenever asked: certificates are replaced, whoever trusts
the authority keeps trusting. Keys are files of mode 0600. For production take certificates of a real authority.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pipelines.errors import StreambankError

__all__ = ["ROLES", "CertificateError", "CertificateInfo", "certificate_info", "make_certificates", "server_context"]

ROLES: Final = ("ca", "server", "broker", "client")
AUTHORITY_DAYS: Final = 3_650
MAX_DAYS: Final = 825
CLOCK_LEEWAY: Final = timedelta(minutes=5)
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption only; those of TLS 1.3 are all so."""


class CertificateError(StreambankError):
    """A certificate or key is missing, unreadable, or does not fit its partner."""


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """What a certificate file says. ``fingerprint`` is SHA-256 in hexadecimal."""

    path: Path
    subject: str
    issuer: str
    names: tuple[str, ...]
    expires_at: datetime
    fingerprint: str


def make_certificates(directory: Path, hosts: Sequence[str], days: int = 365) -> list[CertificateInfo]:
    """``ca.pem`` (made if missing), ``server.pem`` and ``broker.pem`` for the hosts (names and addresses) and
    ``client.pem``, each with its ``-key.pem``. Raises `CertificateError` when only half of the authority is there."""
    if not 1 <= days <= MAX_DAYS:
        raise CertificateError(f"days: {days}; clients refuse certificates of more than {MAX_DAYS} days")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority_file, authority_key_file = directory / "ca.pem", directory / "ca-key.pem"
    if authority_file.exists() != authority_key_file.exists():
        raise CertificateError(f"{directory} has one of ca.pem and ca-key.pem; put the other back or remove both")
    if authority_file.exists():
        authority = x509.load_pem_x509_certificate(authority_file.read_bytes())
        loaded = serialization.load_pem_private_key(authority_key_file.read_bytes(), None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey) or loaded.public_key() != authority.public_key():
            raise CertificateError(f"{authority_key_file} is not the key of ca.pem; put back what belongs together")
        authority_key = loaded
    else:
        authority_key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Streambank local authority")
        authority = (
            _builder(name, name, authority_key, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        _write(authority_key_file, _key_pem(authority_key))
        _write(authority_file, _pem(authority), 0o644)
    names: list[x509.GeneralName] = [_general_name(host) for host in hosts]
    serves, asks = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
    for role, subject, purposes, extra in (
        ("server", hosts[0], [serves], names),
        ("broker", hosts[0], [serves, asks], names),
        ("client", "streambank-client", [asks], [x509.DNSName("streambank-client")]),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name(subject), authority.subject, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectAlternativeName(extra), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
            .sign(authority_key, hashes.SHA256())
        )
        _write(directory / f"{role}-key.pem", _key_pem(key))
        _write(directory / f"{role}.pem", _pem(certificate), 0o644)
    return [certificate_info(directory / f"{role}.pem") for role in ROLES]


def certificate_info(path: Path) -> CertificateInfo:
    """What the (first) certificate in a PEM file says; raises `CertificateError`."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CertificateError(f"{path}: {error}; `streambank certs make` makes one") from error
    try:
        general = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(name.value) for name in general)
    except x509.ExtensionNotFound:
        names = ()
    return CertificateInfo(
        path, found.subject.rfc4514_string(), found.issuer.rfc4514_string(), names, found.not_valid_after_utc,
        found.fingerprint(hashes.SHA256()).hex(),
    )  # fmt: skip


def server_context(certificate: Path, key: Path, client_authority: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 and later for a server; with ``client_authority`` clients must show a certificate by it. Raises
    `CertificateError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate, key)
        if client_authority is not None:
            context.load_verify_locations(client_authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(path) for path in (certificate, key, client_authority) if path is not None)
        raise CertificateError(f"TLS cannot be served with {files}: {error}; see `streambank certs make`") from error
    return context


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_LEEWAY)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file at once; never readable by others in between."""
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        os.fchmod(file.fileno(), mode)
    os.replace(temporary, path)
