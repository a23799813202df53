"""HTTP to addresses that customers name, without letting them reach what is inside (SSRF).

The address is checked where it is used: the connector makes its sockets here, each for one resolved address, and an
address that is not public gets no socket. So a name that resolves to something else at every question gains nothing,
and neither do numbers in other notations, IPv4 inside IPv6, or names with several addresses. Redirects are for the
caller to refuse (``allow_redirects=False``), and proxies of the environment are not used.

Networks that are allowed nevertheless come from ``STREAMBANK_WEBHOOK_ALLOWED_NETWORKS``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from infra.settings import Settings
from pipelines.errors import StreambankError

__all__ = ["AddressRefused", "UrlRefused", "check_url", "guarded_session", "refusal_of"]

MAX_URL: Final = 2_048
RESOLVE_SECONDS: Final = 5.0
MAX_HEADER_BYTES: Final = 8_190
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

Network = IPv4Network | IPv6Network


class UrlRefused(StreambankError):  # noqa: N818 - a state, named for what it is
    """Not a URL to send to; the message says why."""


class AddressRefused(OSError):  # noqa: N818 - a state, named for what it is
    """The name resolves to an address that may not be reached from here."""


def allowed_networks(settings: Settings) -> tuple[Network, ...]:
    """Networks that may be reached although they are not public; raises `UrlRefused` for one that is none."""
    try:
        texts = settings.webhook_allowed_networks.split(",")
        return tuple(ipaddress.ip_network(text.strip()) for text in texts if text.strip())
    except ValueError as error:
        raise UrlRefused(f"STREAMBANK_WEBHOOK_ALLOWED_NETWORKS: {error}; write 10.1.0.0/16,fd00::/8") from error


def refusal_of(address: str, allowed: tuple[Network, ...]) -> str | None:
    """Why an IP address may not be reached, or None."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return f"{address} is no IP address"
    candidates: list[IPv4Address | IPv6Address] = [found]
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        candidates = [found.ipv4_mapped]
    elif isinstance(found, IPv6Address):
        candidates += [inner for inner in (found.sixtofour, *(found.teredo or ())) if inner is not None]
        if found in NAT64:
            candidates.append(IPv4Address(int(found) & 0xFFFFFFFF))
    for candidate in candidates:
        if any(candidate.version == network.version and candidate in network for network in allowed):
            continue
        if not candidate.is_global or candidate.is_multicast or candidate.is_reserved or candidate.is_unspecified:
            return f"{address} is not a public address"
    return None


async def check_url(url: str, settings: Settings) -> None:
    """Raises `UrlRefused` unless the URL can be sent to now: for a good error when it is entered."""
    allowed = allowed_networks(settings)
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise UrlRefused(f"must be at most {MAX_URL} printable ASCII characters without spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UrlRefused("is not a URL") from None
    schemes = ("https", "http") if settings.webhook_allow_http else ("https",)
    if parts.scheme not in schemes or not parts.hostname:
        raise UrlRefused(f"must be an absolute {' or '.join(schemes)} URL")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise UrlRefused("must have no user, password or fragment")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            found = await loop.getaddrinfo(parts.hostname, port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # TimeoutError is an OSError
        raise UrlRefused("names a host that cannot be resolved") from None
    for *_, address in found:
        if refusal_of(str(address[0]), allowed) is not None:
            raise UrlRefused("resolves to an address that is not public")


def guarded_session(settings: Settings, *, connections: int, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    """A session whose sockets connect to checked addresses only; a refused one raises a `ClientConnectorError`."""
    allowed = allowed_networks(settings)

    def make_socket(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = info
        refusal = refusal_of(str(address[0]), allowed)
        if refusal is not None:
            raise AddressRefused(refusal)
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=connections, use_dns_cache=False, socket_factory=make_socket, force_close=True
        ),
        timeout=timeout,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        auto_decompress=False,
    )
