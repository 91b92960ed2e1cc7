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
    proxy_protocol: Annotated[
        bool,
        setting(
            "PROXY_PROTOCOL",
            "Connections of trusted proxies begin with a head of the PROXY protocol, version 1 or 2.",
            show_default=False,
        ),
    ] = False
    tls_cert: Annotated[
        Path | None,
        setting(
            "TLS_CERT",
            "Certificate chain in PEM: serve TLS. It is read again when it changes.",
            metavar="FILE",
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        setting("TLS_KEY", "Key of the certificate in PEM; none: it is in the same file.", metavar="FILE"),
    ] = None
    subscriber_tokens: Annotated[
        Path | None,
        setting(
            "SUBSCRIBER_TOKENS",
            "File of tokens, name:token a line: only clients with one may subscribe.",
            metavar="FILE",
        ),
    ] = None
    operator_tokens: Annotated[
        Path | None,
        setting(
            "OPERATOR_TOKENS",
            "File of tokens for /metrics, /status.json and /subscribers.json.",
            metavar="FILE",
        ),
    ] = None
