"""The settings of what is served: addresses, wires, and how much subscribers may have.

Annotations are values here: cyclopts would look up names in the module of `Settings`.
"""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from jetstream.settings.declaring import address, duration, duration_or_none, setting, size
from jetstream.settings.values import (
    DEFAULT_ADDRESS,
    Address,
    or_none,
    parse_duration,
    parse_edges,
    parse_web_url,
)
from jetstream.upstreams import parse_count

# The Go server's copy of the public dictionary (see `dictionary`). The URL names a commit, so what is
# fetched does not change; its hash is checked as well.
DICTIONARY_URL: Final = (
    "https://raw.githubusercontent.com/bluesky-social/jetstream/3fa54fdbb0f47ad3aa43de78a6fbbd8dc362f81d"
    "/internal/subscribe/dictionaries/legacy_subscribe.zdict"
)


@dataclass(frozen=True, kw_only=True)
class WebSettings:
    """Part of `Settings`."""

    # For everything but the metrics, if these have their own address. With port 0 the log names the
    # port.
    listen: Annotated[
        Address,
        address(
            "LISTEN_ADDR",
            "Address to listen on: :6008 for all addresses, or 127.0.0.1:6008.",
            alias=["--listen-addr", "--addr"],
        ),
    ] = DEFAULT_ADDRESS
    # At most 64. Above 0, this process is the supervisor of one ingest and so many edges (`supervisor`),
    # and each edge has its share of `buffer_total`.
    edges: Annotated[
        int,
        setting(
            "EDGES",
            "Processes that serve subscribers, beside one that reads upstream; 0: one process does both.",
            parse_edges,
            metavar="NUMBER",
        ),
    ] = 0
    # None: `/metrics` is on the main listener. It never has TLS, and no head of the PROXY protocol.
    metrics_listen: Annotated[
        Address | None,
        address("METRICS_LISTEN_ADDR", "Separate address for /metrics.", alias=["--metrics-listen-addr"]),
    ] = None
    # Of a request that does not say. Other paths have their own wire.
    wire: Annotated[Literal["classic", "v1"], setting("WIRE", "Wire format of /subscribe.")] = "classic"
    # Text and no path, since `auto` and `none` are words. A file with one of these names is given as
    # `./auto`.
    zstd_dictionary: Annotated[
        str,
        setting(
            "ZSTD_DICTIONARY",
            "Dictionary of compressed messages: auto fetches the public one, none, or a file.",
            metavar="FILE",
        ),
    ] = "auto"
    # Of use with `auto` only.
    zstd_dictionary_url: Annotated[
        str,
        setting(
            "ZSTD_DICTIONARY_URL",
            "Where the public dictionary is fetched from.",
            parse_web_url,
            metavar="URL",
        ),
    ] = DICTIONARY_URL
    # Bytes. A subscriber that needs more is fed from the log; it is not closed for that.
    subscriber_buffer: Annotated[
        int, size("SUBSCRIBER_BUFFER", "Bytes that may be buffered for one subscriber.")
    ] = 1 << 20
    # Bytes, of all processes together. Above it, those that hold the most are fed from the log.
    buffer_total: Annotated[
        int, size("BUFFER_TOTAL", "Bytes that may be buffered for all subscribers together.")
    ] = 512 << 20
    # Seconds in which the socket of a subscriber has taken nothing although something waits for it.
    slow_timeout: Annotated[
        float,
        duration("SLOW_TIMEOUT", "How long a subscriber may read nothing before it is disconnected."),
    ] = 60.0
    # Of all processes together. Each takes an open file; 0: nobody may subscribe.
    max_subscribers: Annotated[
        int,
        setting(
            "MAX_SUBSCRIBERS",
            "Maximum number of subscribers; others get 503.",
            parse_count,
            metavar="NUMBER",
        ),
    ] = 20_000
    # Seconds. None: a connection to any upstream is enough.
    ready_idle: Annotated[
        float | None,
        duration_or_none(
            "READY_IDLE", "Age of upstream's last frame above which /ready answers 503; none: any age."
        ),
    ] = 60.0
    # Seconds. None: it is not checked.
    ready_lag: Annotated[
        float | None,
        duration_or_none(
            "READY_LAG",
            "Lag of upstream, or of an edge behind the log, from which on /ready answers 503; none: any lag.",
        ),
    ] = 60.0
    # Seconds. None: all connections are closed at once, of an edge over `RuntimeLimits.drain_s`.
    drain: Annotated[
        float | None,
        setting(
            "DRAIN",
            "At SIGTERM, /ready answers 503, and connections are closed over this time. none: 10 s with"
            " --role edge, else all at once.",
            or_none(parse_duration),
            metavar="DURATION",
        ),
    ] = None
