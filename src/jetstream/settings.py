"""Every setting of the server.

Each is declared once, as a field of `Settings`: its flag, environment variable, help text, conversion and
default follow from that, and a test compares `docs/settings.md` with it. A variable has the same name as that
of the Go server, where it has one for the same purpose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_type_hints
from urllib.parse import urlsplit

from cyclopts import Parameter, Token

from jetstream.errors import SettingError
from jetstream.upstreams import FIREHOSE_PATH, Upstream, parse_count, parse_seqs, parse_upstreams
from jetstream.urls import shown
from jetstream.verify_modes import Mode

# The Go server's copy of the public dictionary (see `dictionary`).
DICTIONARY_URL: Final = (
    "https://raw.githubusercontent.com/bluesky-social/jetstream/3fa54fdbb0f47ad3aa43de78a6fbbd8dc362f81d"
    "/internal/subscribe/dictionaries/legacy_subscribe.zdict"
)
PREFIX: Final = "JETSTREAM_"
PLC_URL: Final = "https://plc.directory"
PLC_URL_VARIABLE: Final = f"{PREFIX}PLC_URL"

# Variables of the Go server that have no meaning here: accepted, and logged once as unused.
UNUSED_VARIABLES: Final = frozenset(
    {
        "JETSTREAM_CLICKHOUSE_DSN",
        "JETSTREAM_LIVENESS_TTL",
        "JETSTREAM_MAX_QUEUE_SIZE",
        "JETSTREAM_MAX_SUB_RATE",
        "JETSTREAM_NUM_SHARDS",
        "JETSTREAM_PEBBLE_DIR",
        "JETSTREAM_WORKER_COUNT",
    }
)


class Address(NamedTuple):
    """An address to listen on. An empty host means all addresses of the machine."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


DEFAULT_ADDRESS: Final = Address("", 6008)


def parse_address(text: str) -> Address:
    """Parse `:6008`, `127.0.0.1:6008` or `[::1]:6008`. Raises ValueError."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:/\s]*)):([0-9]{1,5})", text)
    if found is None or int(found[3]) > 65535:
        raise ValueError("is not an address such as :6008 or 127.0.0.1:6008")
    return Address(found[1] or found[2] or "", int(found[3]))


_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION_MAX_S: Final = 10_000_000 * 86_400.0  # fits 63 bits in microseconds


def parse_duration(text: str) -> float:
    """Parse `90m`, `24h`, `3d` or `1h30m` as seconds. Raises ValueError."""
    if not re.fullmatch(r"([0-9]+(\.[0-9]+)?(ms|[smhdw]))+", text):
        raise ValueError("is not a duration such as 90m, 24h or 3d")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9.]+)(ms|[smhdw])", text))
    if seconds <= 0:
        raise ValueError("must be greater than 0")
    if seconds > _DURATION_MAX_S:
        raise ValueError("must be at most 10000000d")
    return seconds


_DECIMAL: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY: Final = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_SIZES: Final = {"": 1} | _DECIMAL | _BINARY


def parse_size(text: str) -> int:
    """Parse `500000`, `512MiB` or `20GB` as bytes. Raises ValueError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    factor = _SIZES.get(found[2]) if found else None
    size = float(found[1]) * factor if found and factor else 0.0
    if not 1 <= size < 1 << 63:
        raise ValueError("is not a size such as 512MiB or 20GB")
    return int(size)


def parse_web_url(text: str) -> str:
    """Parse an http or https URL. Raises ValueError."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or re.search(r"\s", text):
        raise ValueError("is not an http or https URL")
    return text


Network = IPv4Network | IPv6Network


def parse_networks(text: str) -> tuple[Network, ...]:
    """Parse addresses and networks, separated by commas, or `none`. Raises ValueError."""
    if text == "none":
        return ()
    try:
        return tuple(ip_network(item.strip()) for item in text.split(","))
    except ValueError:
        raise ValueError("is not a list of addresses and networks such as 127.0.0.1,10.0.0.0/8") from None


def parse_duration_or_none(text: str) -> float | None:
    """Parse a duration as seconds, or `none`. Raises ValueError."""
    if text == "none":
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ValueError(f"{error}, or none") from None


def _show_duration(seconds: float) -> str:
    unit = next(unit for unit in ("h", "m", "s", "ms") if seconds % _UNITS[unit] == 0)
    return f"{seconds / _UNITS[unit]:g}{unit}"


_PLC_URLS_MAX: Final = 8


def parse_plc_urls(texts: Sequence[str]) -> tuple[str, ...]:
    """Parse base URLs of PLC directories. Raises ValueError, which names the one that is wrong."""
    if len(texts) > _PLC_URLS_MAX:
        raise ValueError(f"{len(texts)} directories are more than {_PLC_URLS_MAX}")
    return tuple(dict.fromkeys(map(_plc_url, texts)))


def _plc_url(text: str) -> str:
    try:
        url = parse_web_url(text)
    except ValueError as error:
        example = f"such as {PLC_URL}"
        raise ValueError(f"{shown(text)!r} {error} {example}") from None  # the cause may quote a password
    if urlsplit(url).query:
        raise ValueError(f"{shown(text)!r} must have no query")
    return url


_RATE_MAX: Final = 10_000.0


def parse_rate(text: str) -> float:
    """Parse a number a second, such as `100` or `0.5`. Raises ValueError."""
    rate = float(text) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", text) else 0.0
    if not 0 < rate <= _RATE_MAX:
        raise ValueError(f"is not a number a second above 0, at most {_RATE_MAX:g}, such as 100 or 0.5")
    return rate


_WORKERS_MAX: Final = 64
_SIMILAR: Final = 0.75  # of difflib: LISTENADDR is similar to LISTEN_ADDR, PORT to nothing


def _workers(text: str) -> int:
    count = parse_count(text)
    if count > _WORKERS_MAX:
        raise ValueError(f"must be at most {_WORKERS_MAX}")
    return count


def unset_if_empty(_type: object, value: str, **_: object) -> list[str]:
    """Read a variable, unsplit. One that is set to nothing counts as unset: Compose files set those."""
    return [value] if value else []


def _split_at_commas(_type: object, value: str, **_: object) -> list[str]:
    """Read a variable with several values. One that is set to nothing counts as unset."""
    return [part.strip() for part in value.split(",")] if value else []


def first_at_comma(_type: object, value: str, **_: object) -> list[str]:
    """Read the first value of a variable with several. One that is set to nothing counts as unset."""
    return _split_at_commas(_type, value)[:1]


def _setting(
    variable: str,
    text: str,
    parse: Any = None,
    show: Callable[[Any], str] | None = None,
    **more: Any,
) -> Parameter:
    """Declare a setting. `show` writes its default in `--help`, where the default is not what one types."""

    def convert(_type: Any, tokens: list[Token]) -> Any:
        value = tokens[0].value
        try:
            return parse(value)
        except ValueError as error:
            value = shown(value) if parse is parse_web_url else value
            raise ValueError(f"{value!r} {error}") from None  # the cause may quote a password

    if show is not None:
        more["show_default"] = lambda value: "none" if value is None else show(value)
    return Parameter(
        env_var=PREFIX + variable,
        env_var_split=unset_if_empty,
        help=text,
        converter=convert if parse is not None else None,
        negative=(),
        **more,
    )


def _several(
    variable: str,
    text: str,
    parse: Callable[[Sequence[str]], Any],
    **more: Any,
) -> Parameter:
    """Declare a setting that may have several values: the flag is repeated, the variable has commas.

    The error of `parse` names the value.
    """

    def convert(_type: Any, tokens: list[Token]) -> Any:
        try:
            return parse([token.value for token in tokens])
        except ValueError as error:
            if len(tokens) == 1:
                raise
            # Where there is one value, cyclopts names its flag or variable.
            raise ValueError(f"Invalid value for {tokens[0].keyword}: {error}") from None

    return Parameter(
        env_var=PREFIX + variable,
        env_var_split=_split_at_commas,
        help=text,
        converter=convert,
        n_tokens=1,
        accepts_keys=False,
        negative=(),
        **more,
    )


_address = partial(_setting, parse=parse_address, show=str, n_tokens=1, accepts_keys=False, metavar="ADDRESS")
_duration = partial(_setting, parse=parse_duration, show=_show_duration, metavar="DURATION")
_duration_or_none = partial(_setting, parse=parse_duration_or_none, show=_show_duration, metavar="DURATION")
_size = partial(_setting, parse=parse_size, show=lambda size: f"{size / (1 << 20):g}MiB", metavar="SIZE")


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of `jetstream serve`. Durations are in seconds, sizes in bytes."""

    upstream: Annotated[
        str | tuple[Upstream, ...],
        _several(
            "WS_URL",
            "Relay or PDS to read: a URL or a host, or name=URL. Repeat it for several.",
            parse_upstreams,
            alias=["--ws-url", "--relay-url"],
            metavar="URL",
        ),
    ] = f"wss://bsky.network{FIREHOSE_PATH}"
    upstream_file: Annotated[
        Path | None,
        _setting(
            "UPSTREAM_FILE",
            "File of more PDSes to read, one a line. SIGHUP reads it again.",
            metavar="FILE",
        ),
    ] = None
    listen: Annotated[
        Address,
        _address(
            "LISTEN_ADDR",
            "Address to listen on: :6008 for all addresses, or 127.0.0.1:6008.",
            alias=["--listen-addr", "--addr"],
        ),
    ] = DEFAULT_ADDRESS
    metrics_listen: Annotated[
        Address | None,
        _address("METRICS_LISTEN_ADDR", "Separate address for /metrics.", alias=["--metrics-listen-addr"]),
    ] = None
    data_dir: Annotated[
        Path,
        _setting(
            "DATA_DIR",
            "Directory of the event log.",
            metavar="DIRECTORY",
            show_default=lambda directory: f"./{directory}",
        ),
    ] = Path("./data")
    retention: Annotated[
        float,
        _duration("EVENT_TTL", "How long events are kept, such as 90m, 24h or 3d.", alias=["--event-ttl"]),
    ] = 24 * 3600.0
    retention_bytes: Annotated[
        int | None, _size("RETENTION_BYTES", "Maximum size of the log; the oldest events are removed.")
    ] = None
    clock_settle: Annotated[
        float,
        _duration("CLOCK_SETTLE", "How long a forward step of the clock must last before it is followed."),
    ] = 300.0
    forget: Annotated[
        Literal["none", "deleted", "deleted,takendown"],
        _setting("FORGET", "Accounts whose records are erased from the log when they end."),
    ] = "deleted"
    wire: Annotated[Literal["classic", "v1"], _setting("WIRE", "Wire format of /subscribe.")] = "classic"
    zstd_dictionary: Annotated[
        str,
        _setting(
            "ZSTD_DICTIONARY",
            "Dictionary of compressed messages: auto fetches the public one, none, or a file.",
            metavar="FILE",
        ),
    ] = "auto"
    zstd_dictionary_url: Annotated[
        str,
        _setting(
            "ZSTD_DICTIONARY_URL",
            "Where the public dictionary is fetched from.",
            parse_web_url,
            metavar="URL",
        ),
    ] = DICTIONARY_URL
    upstream_cursor: Annotated[
        int | tuple[tuple[str, int], ...] | None,
        _several(
            "OVERRIDE_RELAY_CURSOR",
            "Upstream seq to start after, instead of the one in the log; -1: none. With several upstreams:"
            " name=seq.",
            parse_seqs,
            alias=["--override-relay-cursor"],
            metavar="SEQ",
        ),
    ] = None
    verify: Annotated[
        Mode,
        _setting(
            "VERIFY",
            "off: check nothing. cid: that records match their CID. signature: also what the owner signed."
            " full: also that nothing was left out.",
        ),
    ] = "cid"
    verify_workers: Annotated[
        int,
        _setting(
            "VERIFY_WORKERS", "Processes that verify; 0: the server itself does.", _workers, metavar="NUMBER"
        ),
    ] = 0
    unresolved: Annotated[
        Literal["pass", "drop"],
        _setting("UNRESOLVED", "What becomes of a commit whose key is not known after 10 s."),
    ] = "pass"
    unproven: Annotated[
        Literal["pass", "drop"],
        _setting("UNPROVEN", "What becomes of a signed commit that does not prove its operations."),
    ] = "pass"
    plc_url: Annotated[
        tuple[str, ...],
        _several(
            "PLC_URL",
            "PLC directory for signing keys. Repeat it for several, in order.",
            parse_plc_urls,
            show_default=", ".join,
            metavar="URL",
        ),
    ] = (PLC_URL,)
    plc_rate: Annotated[
        float,
        _setting(
            "PLC_RATE",
            "Requests a second to all PLC directories together.",
            parse_rate,
            "{:g}".format,
            metavar="NUMBER",
        ),
    ] = 100.0
    follow_plc: Annotated[
        bool,
        _setting(
            "FOLLOW_PLC", "Keep all signing keys up to date by the directory's export.", show_default=False
        ),
    ] = False
    subscriber_buffer: Annotated[
        int, _size("SUBSCRIBER_BUFFER", "Bytes that may be buffered for one subscriber.")
    ] = 1 << 20
    buffer_total: Annotated[
        int, _size("BUFFER_TOTAL", "Bytes that may be buffered for all subscribers together.")
    ] = 512 << 20
    slow_timeout: Annotated[
        float,
        _duration("SLOW_TIMEOUT", "How long a subscriber may read nothing before it is disconnected."),
    ] = 60.0
    max_subscribers: Annotated[
        int,
        _setting(
            "MAX_SUBSCRIBERS",
            "Maximum number of subscribers; others get 503.",
            parse_count,
            metavar="NUMBER",
        ),
    ] = 20_000
    ready_idle: Annotated[
        float | None,
        _duration_or_none(
            "READY_IDLE", "Age of upstream's last frame above which /ready answers 503; none: any age."
        ),
    ] = 60.0
    ready_lag: Annotated[
        float | None,
        _duration_or_none("READY_LAG", "Lag of upstream from which on /ready answers 503; none: any lag."),
    ] = 60.0
    trusted_proxies: Annotated[
        tuple[Network, ...],
        _setting(
            "TRUSTED_PROXIES",
            "Addresses and networks of reverse proxies whose X-Forwarded-* fields are read.",
            parse_networks,
            lambda networks: ",".join(map(str, networks)) or "none",
            n_tokens=1,
            accepts_keys=False,
            metavar="NETWORKS",
        ),
    ] = ()
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _setting("LOG_LEVEL", "Minimum log level.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "text", "json"], _setting("LOG_FORMAT", "auto: text on a terminal, JSON elsewhere.")
    ] = "auto"


class Setting(NamedTuple):
    """One setting as an operator sees it."""

    flag: str
    variable: str
    default: object
    text: str
    other_flags: tuple[str, ...] = ()  # those of the Go servers


def settings() -> list[Setting]:
    """Return every setting, in the order of `--help`."""
    hints = get_type_hints(Settings, include_extras=True)
    found = []
    for field in fields(Settings):
        (parameter,) = hints[field.name].__metadata__
        flag = "--" + field.name.replace("_", "-")
        others = tuple(parameter.alias or ())
        found.append(Setting(flag, parameter.env_var[0], field.default, parameter.help, others))
    return found


def unused_variables(environment: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the `JETSTREAM_*` variables without effect: those of the Go server, and unknown ones."""
    known = {setting.variable for setting in settings()}
    names = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    unused = [name for name in names if name in UNUSED_VARIABLES]
    return unused, [name for name in names if name not in UNUSED_VARIABLES]


def similar_variable(name: str) -> str | None:
    """Return the variable that an unknown one is probably meant to be; None: there is none like it.

    `JETSTREAM_RETENTION`, after the flag, is meant to be `JETSTREAM_EVENT_TTL`.
    """
    meant = {_of_flag(flag): each.variable for each in settings() for flag in (each.flag, *each.other_flags)}
    meant |= {each.variable.removeprefix(PREFIX): each.variable for each in settings()}
    from difflib import get_close_matches  # noqa: PLC0415 - for a typo only

    close = get_close_matches(name.removeprefix(PREFIX), meant, 1, cutoff=_SIMILAR)
    return meant[close[0]] if close else None


def _of_flag(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_").upper()


def refuse_file(directory: Path) -> None:
    """Raise SettingError if the data directory exists and is something else."""
    with suppress(OSError):  # a path that cannot be looked at is refused where it is used
        if directory.exists() and not directory.is_dir():
            raise SettingError("--data-dir", str(directory), "is not a directory")


def require_data_dir(directory: Path) -> None:
    """Create the data directory if needed. Raises SettingError if that fails."""
    refuse_file(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError("--data-dir", str(directory), f"cannot be created: {error.strerror}") from error
