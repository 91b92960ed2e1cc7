"""Who may connect: the certificate, the files of tokens, the proxies, and the limits per address.

The files are read by the same code as in the server, so what is well here is accepted there.
`check_proxies` and `check_limits` look at the settings only.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from jetstream.doctor.finding import Finding, size
from jetstream.doctor.machine import EVENTS_PER_S
from jetstream.errors import SettingError
from jetstream.settings import Settings
from jetstream.web.certificate import EXPIRES_SOON, expiry, load
from jetstream.web.guard import TokenFile

# Bytes of an event on a socket, uncompressed; measured in docs/benchmarks.md.
MESSAGE_BYTES: Final = 500
_LOOPBACK: Final = (ip_address("127.0.0.1"), ip_address("::1"))


def check_access(settings: Settings, now: datetime | None = None) -> Iterator[Finding]:
    """Yield a finding for each of these that is in use.

    `now` is the time by which a certificate expires, with a time zone; by default the present.
    """
    if settings.tls_cert is not None:
        yield check_certificate(settings.tls_cert, settings.tls_key, now or datetime.now(UTC))
    for flag, file in (
        ("--subscriber-tokens", settings.subscriber_tokens),
        ("--operator-tokens", settings.operator_tokens),
    ):
        if file is not None:
            yield check_tokens(flag, file)
    yield from check_proxies(settings)
    yield from check_limits(settings)


def check_certificate(chain: Path, key: Path | None, now: datetime) -> Finding:
    """Say whether a certificate can be used, and for how long.

    Without `key`, the key is in the file of the chain. Of several problems, the worst is named: a
    certificate that cannot be loaded, one that has expired, one that expires within `EXPIRES_SOON`, a
    key that all users can read.
    """
    key = key or chain
    try:
        load(chain, key)
        expires = expiry(chain)
    except SettingError as error:
        return Finding(
            "tls", "fail", str(error), "give --tls-cert and --tls-key PEM files that belong together"
        )
    left = expires - now
    text = f"the certificate is valid until {expires:%Y-%m-%d}"
    if left <= timedelta(0):
        return Finding("tls", "fail", text, "renew it: clients refuse it")
    if left < EXPIRES_SOON:
        return Finding("tls", "warn", text, "renew it: the server reads it again by itself")
    # Last, since the server works in spite of it.
    if _others_read(key):
        return Finding("tls", "warn", f"every user can read the key in {key}", f"chmod o-r {key}")
    return Finding("tls", "ok", text)


def check_tokens(flag: str, file: Path) -> Finding:
    """Say whether a file of tokens can be used.

    `flag` is the setting that names it. Tokens themselves are never shown.
    """
    try:
        count = len(TokenFile(flag, file).tokens.known)
    except SettingError as error:
        return Finding("tokens", "fail", str(error), "write one a line, as name:token")
    if _others_read(file):
        return Finding("tokens", "warn", f"every user can read {file}", f"chmod o-r {file}")
    return Finding("tokens", "ok", f"{count} tokens in {file}")


def check_proxies(settings: Settings) -> Iterator[Finding]:
    """Yield what does not fit about proxies."""
    # Nothing is asked of the proxies: which headers they send cannot be seen from here.
    trusted = settings.trusted_proxies
    # Such a network is 0.0.0.0/0 or ::/0.
    if any(not network.prefixlen for network in trusted):
        hint = "name the addresses of your proxies only: any client can forge its address"
        yield Finding("proxies", "warn", "--trusted-proxies trusts every address", hint)
    if settings.proxy_protocol and not trusted:
        hint = "name the proxies that speak it: --trusted-proxies"
        yield Finding("proxies", "warn", "--proxy-protocol has no effect without trusted proxies", hint)
    elif settings.proxy_protocol and any(address in network for address in _LOOPBACK for network in trusted):
        hint = "health checks and scrapes of this machine need --metrics-listen, or a head of the protocol"
        yield Finding("proxies", "ok", f"this machine is a trusted proxy: {hint}")


def check_limits(settings: Settings) -> Iterator[Finding]:
    """Yield a finding if replays cannot keep up with the events of a relay.

    A replay reads while new events come. It warns below twice the rate of live events, where a replay of
    an hour takes an hour, and advises four times the rate.
    """
    most, needed = settings.address_replay_bytes, EVENTS_PER_S * MESSAGE_BYTES
    if most is not None and most < 2 * needed:
        text = f"--address-replay-bytes is {size(most)} a second; a relay's live events take {size(needed)}"
        yield Finding(
            "limits", "warn", text, f"set {size(4 * needed).replace(' ', '')} or more, or replays never end"
        )


def _others_read(file: Path) -> bool:
    """Tell whether every user of the machine may read a file. Raises OSError if it is not there any more."""
    return bool(file.stat().st_mode & stat.S_IROTH)
