"""The settings of who may connect.

Annotations are values here: cyclopts would look up names in the module of `Settings`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from jetstream.settings.declaring import setting
from jetstream.settings.values import (
    PRIVATE,
    Network,
    or_none,
    parse_exempt,
    parse_networks,
    parse_rate,
    parse_size,
    show_exempt,
    show_size,
)
from jetstream.upstreams import parse_count


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """Part of `Settings`."""

    # None is `none` in all five limits per address: there is none. An address is an IPv4 address or the
    # /64 of an IPv6 address. `web/address_limits.py` counts them.
    address_connections: Annotated[
        int | None,
        setting(
            "ADDRESS_CONNECTIONS",
            "Connections that one address may have; others get 429. none: any number.",
            or_none(parse_count),
            show=str,
            metavar="NUMBER",
        ),
    ] = 100
    # A second. `WebLimits.address_burst_s` seconds of each rate may come at once.
    address_connection_rate: Annotated[
        float | None,
        setting(
            "ADDRESS_CONNECTION_RATE",
            "Connections a second that one address may begin.",
            or_none(parse_rate),
            "{:g}".format,
            metavar="NUMBER",
        ),
    ] = 10.0
    # A replay is a subscription that reads past events, until it has reached the newest one.
    address_replays: Annotated[
        int | None,
        setting(
            "ADDRESS_REPLAYS",
            "Subscriptions of one address that may read past events at the same time.",
            or_none(parse_count),
            show=str,
            metavar="NUMBER",
        ),
    ] = 20
    # A second. Clients that come back after an interruption count, too.
    address_replay_rate: Annotated[
        float | None,
        setting(
            "ADDRESS_REPLAY_RATE",
            "Subscriptions a second of one address that may begin to read past events.",
            or_none(parse_rate),
            "{:g}".format,
            metavar="NUMBER",
        ),
    ] = 1.0
    # Bytes a second, before compression. A replay above it pauses, and is not closed; live events do not
    # count.
    address_replay_bytes: Annotated[
        int | None,
        setting(
            "ADDRESS_REPLAY_BYTES",
            "Bytes of past events a second that one address is sent; above that they are sent slower.",
            or_none(parse_size),
            show_size,
            metavar="SIZE",
        ),
    ] = 16 << 20
    # Private networks by default: a server behind a proxy, or for its own network, is not limited by
    # surprise.
    address_exempt: Annotated[
        tuple[Network, ...],
        setting(
            "ADDRESS_EXEMPT",
            "Networks whose addresses have no such limits; private: loopback and private networks.",
            parse_exempt,
            show_exempt,
            n_tokens=1,
            accepts_keys=False,
            metavar="NETWORKS",
        ),
    ] = PRIVATE
    # Nobody by default, since any client can send these fields. They are `Forwarded` (RFC 7239) and
    # `X-Forwarded-…`.
    trusted_proxies: Annotated[
        tuple[Network, ...],
        setting(
            "TRUSTED_PROXIES",
            "Addresses and networks of reverse proxies: what they say of their clients is believed.",
            parse_networks,
            lambda networks: ",".join(map(str, networks)) or "none",
            n_tokens=1,
            accepts_keys=False,
            metavar="NETWORKS",
        ),
    ] = ()
    # A connection of a trusted proxy without a head is closed. Without `trusted_proxies` it has no
    # effect, which `jetstream doctor` says.
    proxy_protocol: Annotated[
        bool,
        setting(
            "PROXY_PROTOCOL",
            "Connections of trusted proxies begin with a head of the PROXY protocol, version 1 or 2.",
            show_default=False,
        ),
    ] = False
    # None: the server speaks no TLS. Both files are looked at every second, and read again when they
    # change.
    tls_cert: Annotated[
        Path | None,
        setting(
            "TLS_CERT",
            "Certificate chain in PEM: serve TLS. It is read again when it changes.",
            metavar="FILE",
        ),
    ] = None
    # It may have no password: nobody could type it at a restart.
    tls_key: Annotated[
        Path | None,
        setting("TLS_KEY", "Key of the certificate in PEM; none: it is in the same file.", metavar="FILE"),
    ] = None
    # None: everybody may subscribe. The file is read again at SIGHUP only.
    subscriber_tokens: Annotated[
        Path | None,
        setting(
            "SUBSCRIBER_TOKENS",
            "File of tokens, name:token a line: only clients with one may subscribe.",
            metavar="FILE",
        ),
    ] = None
    # None: figures are open to all, and subscribers are listed for programs of this machine only. These
    # tokens are also good for subscriptions.
    operator_tokens: Annotated[
        Path | None,
        setting(
            "OPERATOR_TOKENS",
            "File of tokens for /metrics, /status.json and /subscribers.json.",
            metavar="FILE",
        ),
    ] = None
