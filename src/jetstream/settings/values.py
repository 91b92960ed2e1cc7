"""The values of settings, as people write them. Pure.

For each kind there is a `parse_…`, and a `show_…` where the default is not what one types: what `show_…`
returns can be parsed again.

A ValueError says what is wrong with a value, as the end of a sentence: `is not a duration such as 90m`.
The caller names the value and its setting. Patterns are strict on purpose: `float` and `int` of Python
would take `1_000`, `1e3`, `nan` and digits of other scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, NamedTuple, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from jetstream.upstreams import parse_count
from jetstream.urls import shown

# The directory of Bluesky, in which all did:plc accounts are (https://web.plc.directory).
PLC_URL: Final = "https://plc.directory"


class Address(NamedTuple):
    """An address to listen on. An empty host means all addresses of the machine."""

    # A name, an IPv4 address, or an IPv6 address without its brackets.
    host: str
    # 0: the system chooses one.
    port: int

    def __str__(self) -> str:
        """Return it as it can be parsed, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class LogUrl(NamedTuple):
    """Where an event log is: in a directory with an SQLite file, or in a PostgreSQL database."""

    # One of the two is set. The address has its password: it is for the driver only.
    directory: Path | None = None
    address: str | None = None  # with its password

    def __str__(self) -> str:
        """Return it as it may be shown: without user and password."""
        return f"sqlite:{self.directory}" if self.address is None else shown(self.address)

    def __repr__(self) -> str:
        return f"LogUrl({str(self)!r})"  # without the password


def parse_log_url(text: str) -> LogUrl:
    """Parse `sqlite:DIRECTORY` or `postgresql://…`. Raises ValueError.

    The address is given to the driver as it is; here is only checked that it cannot be misread.
    """
    scheme, _, rest = text.partition(":")
    if scheme in ("postgresql", "postgres") and rest.startswith("//"):
        if not _is_readable(text):
            raise ValueError(
                "cannot be read as an address: in a user name or a password, write / as %2F, ? as %3F,"
                " # as %23, @ as %40 and % as %25"
            )
        return LogUrl(address=text)
    if scheme != "sqlite" or not rest:
        raise ValueError(
            "is not the place of a log such as sqlite:/var/lib/jetstream or postgresql://user@host/database"
        )
    return LogUrl(Path(rest))


# One host of an address: a name, or an IPv6 address in brackets, and a port. An empty one is a Unix
# socket, or in the query.
_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]@]*)(:[0-9]{1,5})?")


def _is_readable(address: str) -> bool:
    """Tell whether the address of a database means what it says: no part of a password seems to be a host.

    A password with an unescaped `/`, `?`, `#` or `@` would be cut there, and its rest would be looked up
    as a host: it would leave this machine in a DNS query.
    """
    try:
        parts = urlsplit(address)
        if parts.query:
            parse_qs(parts.query, strict_parsing=True)
    except ValueError:
        return False
    *login, hosts = parts.netloc.split("@")
    known = all(_HOST.fullmatch(unquote(host)) for host in hosts.split(","))
    return known and len(login) <= 1 and not parts.fragment and "@" not in parts.path


# The port of the Go server.
DEFAULT_ADDRESS: Final = Address("", 6008)


def parse_address(text: str) -> Address:
    """Parse `:6008`, `127.0.0.1:6008` or `[::1]:6008`. Raises ValueError.

    A host name is not looked up here, but when it is listened on.
    """
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:/\s]*)):([0-9]{1,5})", text)
    if found is None or int(found[3]) > 65535:
        raise ValueError("is not an address such as :6008 or 127.0.0.1:6008")
    return Address(found[1] or found[2] or "", int(found[3]))


# Seconds of each unit.
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
# The longest duration in seconds, some 27,000 years. As microseconds it fits 63 bits, which SQLite
# stores.
_DURATION_MAX_S: Final = 10_000_000 * 86_400.0


def parse_duration(text: str) -> float:
    """Parse `90m`, `24h`, `3d` or `1h30m` as seconds. Raises ValueError.

    Parts add up, in any order. A number without a unit is refused: it could be seconds or milliseconds.
    0 is refused, too.
    """
    if not re.fullmatch(r"([0-9]+(\.[0-9]+)?(ms|[smhdw]))+", text):
        raise ValueError("is not a duration such as 90m, 24h or 3d")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9.]+)(ms|[smhdw])", text))
    if seconds <= 0:
        raise ValueError("must be greater than 0")
    if seconds > _DURATION_MAX_S:
        raise ValueError("must be at most 10000000d")
    return seconds


# Bytes of each unit, in lower case, without the `B` after it: `MB` is decimal, `MiB` binary.
_DECIMAL: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY: Final = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_SIZES: Final = {"": 1} | _DECIMAL | _BINARY


def parse_size(text: str) -> int:
    """Parse `500000`, `512MiB` or `20GB` as bytes. Raises ValueError.

    From 1 byte up to what 63 bits hold. Upper and lower case mean the same; a fraction of a byte is cut
    off.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    factor = _SIZES.get(found[2]) if found else None
    size = float(found[1]) * factor if found and factor else 0.0
    if not 1 <= size < 1 << 63:
        raise ValueError("is not a size such as 512MiB or 20GB")
    return int(size)


def show_size(size: int) -> str:
    """Write a size as it can be parsed, in MiB."""
    return f"{size / (1 << 20):g}MiB"


def parse_web_url(text: str) -> str:
    """Parse an http or https URL; return it as it is. Raises ValueError."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or re.search(r"\s", text):
        raise ValueError("is not an http or https URL")
    return text


# An address counts as a network of one.
Network = IPv4Network | IPv6Network


def parse_networks(text: str) -> tuple[Network, ...]:
    """Parse addresses and networks, separated by commas, or `none`. Raises ValueError.

    A network with bits of a host, such as `10.0.0.1/8`, is refused: it is probably a mistake.
    """
    if text == "none":
        return ()
    try:
        return tuple(ip_network(item.strip()) for item in text.split(","))
    except ValueError:
        raise ValueError("is not a list of addresses and networks such as 127.0.0.1,10.0.0.0/8") from None


# The word `private` in a list of networks. In this order: loopback, the private networks of RFC 1918,
# link-local addresses (RFC 3927), unique local addresses (RFC 4193) and link-local ones of IPv6 (RFC
# 4291).
PRIVATE: Final = tuple(
    map(
        ip_network,
        (
            *("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
            *("169.254.0.0/16", "fc00::/7", "fe80::/10"),
        ),
    )
)


def parse_exempt(text: str) -> tuple[Network, ...]:
    """Parse a list of networks, in which `private` stands for `PRIVATE`. Raises ValueError."""
    if text == "none":
        return ()
    items = [item.strip() for item in text.split(",")]
    private = PRIVATE if "private" in items else ()
    try:
        return (*private, *(ip_network(item) for item in items if item != "private"))
    except ValueError:
        raise ValueError("is not a list of addresses and networks such as private,198.51.100.0/24") from None


def show_exempt(networks: Sequence[Network]) -> str:
    """Write a list of networks as it can be parsed."""
    private = tuple(networks[: len(PRIVATE)]) == PRIVATE
    others = networks[len(PRIVATE) :] if private else networks
    return ",".join([*(["private"] if private else []), *map(str, others)]) or "none"


Value = TypeVar("Value")


def or_none(parse: Callable[[str], Value]) -> Callable[[str], Value | None]:
    """Return what parses `none` as None, and everything else as `parse` does. It raises ValueError."""

    def parse_or_none(text: str) -> Value | None:
        """Parse a text. The error says that `none` would be possible, too."""
        if text == "none":
            return None
        try:
            return parse(text)
        except ValueError as error:
            raise ValueError(f"{error}, or none") from None

    return parse_or_none


def show_duration(seconds: float) -> str:
    """Write a duration as it can be parsed, in the largest unit that leaves no fraction.

    A fraction of a millisecond is one of a second.
    """
    fits = (unit for unit in ("h", "m", "s", "ms") if (seconds / _UNITS[unit]).is_integer())
    unit = next(fits, "s")
    return f"{seconds / _UNITS[unit]:.15g}{unit}"


# One that does not answer delays the keys of accounts by its timeout.
_PLC_URLS_MAX: Final = 8


def parse_plc_urls(texts: Sequence[str]) -> tuple[str, ...]:
    """Parse base URLs of PLC directories. Raises ValueError, which names the one that is wrong.

    The order stays, and one that is named twice counts once.
    """
    if len(texts) > _PLC_URLS_MAX:
        raise ValueError(f"{len(texts)} directories are more than {_PLC_URLS_MAX}")
    return tuple(dict.fromkeys(map(_plc_url, texts)))


def _plc_url(text: str) -> str:
    """Parse one base URL. Raises ValueError, which names it without its secrets.

    A query is refused: paths such as `/export` are appended to the URL.
    """
    try:
        url = parse_web_url(text)
    except ValueError as error:
        example = f"such as {PLC_URL}"
        raise ValueError(f"{shown(text)!r} {error} {example}") from None  # the cause may quote a password
    if urlsplit(url).query:
        raise ValueError(f"{shown(text)!r} must have no query")
    return url


# A second: more than a server could make use of.
_RATE_MAX: Final = 10_000.0


def parse_rate(text: str) -> float:
    """Parse a number a second, such as `100` or `0.5`. Raises ValueError.

    It has three decimals at most, and is above 0.
    """
    rate = float(text) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", text) else 0.0
    if not 0 < rate <= _RATE_MAX:
        raise ValueError(f"is not a number a second above 0, at most {_RATE_MAX:g}, such as 100 or 0.5")
    return rate


# Processes of one server, of each kind: a greater number is probably a typing error.
EDGES_MAX: Final = 64
_WORKERS_MAX: Final = 64


def parse_edges(text: str) -> int:
    """Parse a number of edges. Raises ValueError."""
    count = parse_count(text)
    if count > EDGES_MAX:
        raise ValueError(f"must be at most {EDGES_MAX}")
    return count


def parse_workers(text: str) -> int:
    """Parse a number of processes. Raises ValueError."""
    count = parse_count(text)
    if count > _WORKERS_MAX:
        raise ValueError(f"must be at most {_WORKERS_MAX}")
    return count
