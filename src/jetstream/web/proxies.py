"""What a reverse proxy says about the client behind it. Pure.

    Forwarded          for=203.0.113.9;proto=https;host=jetstream.example.com, …    (RFC 7239)
    X-Forwarded-For    203.0.113.9, …
    X-Forwarded-Proto, X-Forwarded-Host

Anybody can send these fields. They are read only where the peer of the connection is a proxy that the
operator trusts (`--trusted-proxies`).

What is taken from them: the address of the client, for the log and the limits per address; the scheme and
the host, for URLs in pages and refusals. `peer` is the IP address of the other end of the connection, or
what a head of the PROXY protocol has put in its place (`Connection.origin`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

from jetstream.settings import Network
from jetstream.web.http import Request, is_host

PEERS_REMEMBERED: Final = 256  # addresses of clients: nearly all may be that of one proxy
# A parameter of `Forwarded`, quoted or not, and what ends it. It begins where a name does: a search that
# began at each letter of a long name would take the square of its length.
_PAIR: Final = re.compile(
    r'(?<![\w-])([\w-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*))\s*([;,]|$)', re.ASCII
).findall
# A character with a backslash before it, in a quoted parameter (RFC 9110, section 5.6.4).
_ESCAPED: Final = re.compile(r"\\(.)")


class Client(NamedTuple):
    """The client of a request: its address, and the request as the client made it to the proxy.

    The request has its scheme and its `Host` field replaced where a trusted proxy names others.
    """

    address: str
    request: Request


def client_of(request: Request, peer: str, trusted: Sequence[Network]) -> Client:
    """Return the client of a request that came from the address `peer`.

    That is the peer itself, unless it is trusted. Then it is the last address that is forwarded and not
    trusted, since each proxy appends the address of its own peer. The scheme and the host are the first
    values of their fields, which the outermost proxy has set. What cannot be used is left as it was.

    `Forwarded` is read only where there is no `X-Forwarded-For`: a proxy that sets one of them passes the
    other on as the client has sent it, and most set the latter.
    """
    if not is_trusted(peer, trusted):
        return Client(peer, request)
    elements = _forwarded(request)
    addresses = request.headers.get("x-forwarded-for", "").split(",")
    if "x-forwarded-for" in request.headers:
        # What a client has sent under the name that its proxy does not set must not count.
        elements = [{}]
    elif elements != [{}]:
        addresses = [each.get("for", "") for each in elements]
    # Values that are neither a scheme of HTTP nor a host leave the request as it was.
    scheme = (elements[0].get("proto") or _first(request, "x-forwarded-proto")).lower()
    host = elements[0].get("host") or _first(request, "x-forwarded-host")
    if scheme in ("http", "https"):
        request = request._replace(scheme=scheme)
    if is_host(host):
        request = request._replace(headers={**request.headers, "host": host})
    return Client(_address(addresses, peer, trusted), request)


def _address(addresses: Sequence[str], peer: str, trusted: Sequence[Network]) -> str:
    """Return the address of the client, where `peer` is trusted.

    `addresses` are in the order of the proxies: the client first, the nearest proxy last. A trusted one
    among them is a proxy before the last one. Where an item is no address, such as `unknown` or a hidden
    name (RFC 7239, section 6), the last trusted address counts as the client.
    """
    for item in reversed(addresses):
        address = _parse(item.strip())
        if address is None:
            break
        peer = str(address)
        if not is_trusted(peer, trusted):
            break
    return peer


@lru_cache(PEERS_REMEMBERED)
def is_loopback(peer: str) -> bool:
    """Tell whether an IP address is of this machine; an IPv4 address mapped into IPv6 counts, too.

    An empty text, or anything else that is no address, is not.
    """
    address = _parse(peer)
    return address is not None and address.is_loopback


def is_trusted(peer: str, trusted: Sequence[Network]) -> bool:
    """Tell whether an address is that of a trusted proxy. False where none is trusted."""
    return bool(trusted) and in_networks(peer, trusted)


def in_networks(text: str, networks: Sequence[Network]) -> bool:
    """Tell whether a text is an address of one of these networks. False if it is no address."""
    address = _parse(text)
    return address is not None and any(address in network for network in networks)


def unmapped(address: str) -> str:
    """Return an address without the prefix of one that is mapped into IPv6.

    A socket for IPv6 and IPv4 shows 203.0.113.9 as `::ffff:203.0.113.9`. The text is not checked
    otherwise.
    """
    ipv4 = address.removeprefix("::ffff:")
    return ipv4 if "." in ipv4 else address


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


def _forwarded(request: Request) -> list[dict[str, str]]:
    """Return the elements of `Forwarded`: their parameters by name, in lower case.

    The first is of the outermost proxy. There is always one, empty if the field is missing. What does not
    read as a parameter is skipped.
    """
    value = request.headers.get("forwarded", "")
    elements: list[dict[str, str]] = [{}]
    for name, quoted, token, end in _PAIR(value):
        elements[-1][name.lower()] = _ESCAPED.sub(r"\1", quoted) if quoted else token
        if end == ",":
            elements.append({})
    return elements


def _first(request: Request, name: str) -> str:
    """Return the first value of a field that is a list; empty if the field is missing."""
    return request.headers.get(name, "").partition(",")[0].strip()
