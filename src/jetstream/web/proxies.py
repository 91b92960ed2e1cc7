"""What a reverse proxy says about the client behind it: `X-Forwarded-For`, `-Proto` and `-Host`. Pure.

Anybody can send these fields. They are read only where the peer of the connection is a proxy that the
operator trusts (`--trusted-proxies`).
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from jetstream.settings import Network
from jetstream.web.http import Request, is_host


class Client(NamedTuple):
    """The client of a request: its address, and the request as the client made it to the proxy."""

    address: str
    request: Request


def client_of(request: Request, peer: str, trusted: Sequence[Network]) -> Client:
    """Return the client of a request that came from the address `peer`.

    That is the peer itself, unless it is trusted. Then it is the last address in `X-Forwarded-For` that is
    not trusted, since each proxy appends the address of its own peer. The scheme and the host are the first
    values of their fields, which the outermost proxy has set. What cannot be used is left as it was.
    """
    if not trusted or not _is_trusted(peer, trusted):
        return Client(peer, request)
    scheme, host = _first(request, "x-forwarded-proto").lower(), _first(request, "x-forwarded-host")
    if scheme in ("http", "https"):
        request = request._replace(scheme=scheme)
    if is_host(host):
        request = request._replace(headers={**request.headers, "host": host})
    return Client(_address(request, peer, trusted), request)


def _address(request: Request, peer: str, trusted: Sequence[Network]) -> str:
    """Return the address of the client, where `peer` is trusted."""
    for item in reversed(request.headers.get("x-forwarded-for", "").split(",")):
        address = _parse(item.strip())
        if address is None:
            break
        peer = str(address)
        if not _is_trusted(peer, trusted):
            break
    return peer


def _is_trusted(peer: str, trusted: Sequence[Network]) -> bool:
    address = _parse(peer)
    return address is not None and any(address in network for network in trusted)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address, which some proxies write with a port; None for anything else.

    An IPv4 address that is mapped into IPv6 is returned as IPv4: a socket of both kinds names it so.
    """
    host = text[1:].partition("]")[0] if text.startswith("[") else text
    if host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _first(request: Request, name: str) -> str:
    return request.headers.get(name, "").partition(",")[0].strip()
