"""Certificates for local use: who trusts whom."""

from __future__ import annotations

import asyncio
import ssl
import stat
from pathlib import Path

import pytest

from infra.certificates import CertificateError, certificate_info, make_certificates, server_context


async def talk(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bytes:
    """What a client hears from a TLS server; raises what its handshake does."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
        try:
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()


def trusting(directory: Path, certificate: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    if certificate is not None:
        context.load_cert_chain(directory / f"{certificate}.pem", directory / f"{certificate}-key.pem")
    return context


async def test_clients_trust_the_server_and_the_server_its_clients(tmp_path: Path) -> None:
    ours, others = tmp_path / "ours", tmp_path / "others"
    made = make_certificates(ours, ["bank.local", "127.0.0.1"])
    make_certificates(others, ["bank.local"])
    assert [entry.path.name for entry in made] == ["ca.pem", "server.pem", "broker.pem", "client.pem"]
    assert made[1].names == ("bank.local", "127.0.0.1")
    assert stat.S_IMODE((ours / "server-key.pem").stat().st_mode) == 0o600

    open_server = server_context(ours / "server.pem", ours / "server-key.pem")
    for name in ("bank.local", "127.0.0.1"):
        assert await talk(open_server, trusting(ours), name) == b"hello\n"
    for client, name in ((trusting(others), "bank.local"), (trusting(ours), "other.local")):
        with pytest.raises(ssl.SSLCertVerificationError):
            await talk(open_server, client, name)
    old = trusting(ours)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await talk(open_server, old, "bank.local") == b"hello\n"

    mutual = server_context(ours / "server.pem", ours / "server-key.pem", ours / "ca.pem")
    assert await talk(mutual, trusting(ours, "client"), "bank.local") == b"hello\n"
    stranger = trusting(ours)
    stranger.load_cert_chain(others / "client.pem", others / "client-key.pem")
    for client in (trusting(ours), stranger, trusting(ours, "server")):
        try:  # in TLS 1.3 a client learns after its handshake that it was refused
            heard = await talk(mutual, client, "bank.local")
        except (ssl.SSLError, ConnectionError):
            heard = b""
        assert heard == b""

    # renewed under the same authority: whoever trusts it keeps trusting
    again = make_certificates(ours, ["bank.local"])
    assert again[0].fingerprint == made[0].fingerprint
    assert again[1].fingerprint != made[1].fingerprint
    renewed = server_context(ours / "server.pem", ours / "server-key.pem")
    assert await talk(renewed, trusting(ours), "bank.local") == b"hello\n"


def test_what_does_not_belong_together_is_said(tmp_path: Path) -> None:
    make_certificates(tmp_path / "a", ["a.local"])
    make_certificates(tmp_path / "b", ["b.local"])
    with pytest.raises(CertificateError, match="certs make"):
        server_context(tmp_path / "a" / "server.pem", tmp_path / "b" / "server-key.pem")
    with pytest.raises(CertificateError, match="certs make"):
        certificate_info(tmp_path / "none.pem")
    (tmp_path / "a" / "ca-key.pem").write_bytes((tmp_path / "b" / "ca-key.pem").read_bytes())
    with pytest.raises(CertificateError, match="not the key"):
        make_certificates(tmp_path / "a", ["a.local"])
    (tmp_path / "a" / "ca-key.pem").unlink()
    with pytest.raises(CertificateError, match="remove both"):
        make_certificates(tmp_path / "a", ["a.local"])
    with pytest.raises(CertificateError, match="825"):
        make_certificates(tmp_path / "b", ["b.local"], days=1000)
