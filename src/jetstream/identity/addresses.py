"""Where the document of a `did:web` is, which addresses may be asked for it, and hosts of URLs. Pure.

Any account can name any host, so a host is a foreign value. Source: the DID page of the AT Protocol
specification, "Blessed DID methods": only host names, without a path; a port only for localhost, in tests.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import urlsplit

from jetstream.atproto.compact_did import is_plc
from jetstream.identity.failures import NoKey

_WEB: Final = "did:web:"
_HOST_CHARS_MAX: Final = 253
_URL_CHARS_MAX: Final = 500  # of an endpoint; real ones have 20 to 50
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# At least two labels. The last one begins with a letter, so that no IP address is a host name.
_HOST: Final = re.compile(
    rf"(?:{_LABEL}\.)+[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?", re.IGNORECASE | re.ASCII
).fullmatch
# Top-level domains that no account may have (the handle page of the specification), and those of names that
# are resolved only within a network.
_RESERVED: Final = frozenset(
    {"alt", "arpa", "example", "home", "internal", "invalid", "lan", "local", "localhost", "onion", "test"}
)
# The internet's IPv6 addresses are in the first. Those of NAT64, which stand for IPv4 addresses, are not. The
# second has addresses for examples (RFC 9637).
_UNICAST: Final = IPv6Network("2000::/3")
_EXAMPLES: Final = IPv6Network("3fff::/20")

_PORTS: Final = {"https": 443, "wss": 443, "http": 80, "ws": 80}


def endpoint(url: object) -> str:
    """Return the host and the port of a URL, in lower case: `pds.example.com`, or `localhost:2583`.

    The port is left out if it is 443. So what a DID document names as a PDS can be compared with the URL of
    an upstream. Empty: it is no URL of https, http, wss or ws with a host name.
    """
    if not isinstance(url, str) or len(url) > _URL_CHARS_MAX or not url.isascii():
        return ""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        return ""
    if not host or len(host) > _HOST_CHARS_MAX or any(each.isspace() for each in host):
        return ""
    return host if port == 443 else f"{host}:{port}"


def is_resolvable(did: str) -> bool:
    """Tell whether a DID of this form has a document: a `did:plc`, and the `did:web` of a host name."""
    return is_plc(did) or _host(did) is not None


def web_url(did: str) -> str:
    """Return the URL of the document of a `did:web`. Raises NoKey (`method`) for any other DID."""
    if (host := _host(did)) is None:
        raise NoKey("method", "it is neither a did:plc nor the did:web of a host name")
    return f"https://{host}/.well-known/did.json"


def _host(did: str) -> str | None:
    """Return the host of a `did:web`; None for another DID, and for a host that no account may have."""
    host = did.removeprefix(_WEB)
    usable = len(did) - len(_WEB) == len(host) <= _HOST_CHARS_MAX and _HOST(host) is not None
    return host if usable and host.rpartition(".")[2].lower() not in _RESERVED else None


def is_public(address: str) -> bool:
    """Tell whether an IP address belongs to the public internet.

    Not public are addresses of this machine, of private networks and of links, multicast, and IPv6 addresses
    that stand for an IPv4 address.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address) and (
        ip not in _UNICAST or ip in _EXAMPLES or ip.sixtofour is not None or ip.teredo is not None
    ):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
