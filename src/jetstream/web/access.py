"""Who may connect to a server, by its settings: certificate, proxies, limits per address, tokens.

    settings ──▶ Peers          which proxies are trusted, and what an address may have
             ──▶ Certificate    with what handshakes are made, with TLS
             ──▶ guards         which path needs a token

One object for all listeners of a server. It reads the files at the start; `check` and `reload` look at
them again, and what was read takes effect for the next connection or request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jetstream.conditions import Conditions
from jetstream.errors import SettingError
from jetstream.limits import WebLimits
from jetstream.settings import Settings
from jetstream.web.address_limits import Addresses, AddressLimits
from jetstream.web.guard import Guard, NeedsToken, OnlyLocal, TokenFile
from jetstream.web.methods import PREFIX, SUBSCRIBE_EVENTS
from jetstream.web.peers import Peers

if TYPE_CHECKING:
    from ssl import SSLContext

    from jetstream.web.certificate import Certificate

# The paths of events, and of what costs work; of figures; of subscribers, one by one.
EVENTS: Final = (
    *("/subscribe", "/v1/subscribe", PREFIX + SUBSCRIBE_EVENTS, "/events"),
    *("/explain", "/gaps", "/filters"),
)
# Open to all without `--operator-tokens`: the page and Prometheus read them.
FIGURES: Final = ("/metrics", "/status.json")
# These have addresses of clients, and can disconnect them. So they are never open to all.
SUBSCRIBERS: Final = ("/subscribers.json", "/subscribers/kick")


class Access:
    """Who may connect. Raises SettingError for a file that cannot be used."""

    def __init__(self, settings: Settings, conditions: Conditions, limits: WebLimits = WebLimits()) -> None:
        address_limits = AddressLimits.of(settings, limits)
        addresses = Addresses(address_limits, time.monotonic) if address_limits.any else None
        # Used by the main listener. That of `--metrics-listen` has no limits and no proxies.
        self.peers = Peers(settings.trusted_proxies, addresses, settings.proxy_protocol)
        # None: the server has no TLS.
        # Checked by `check` and `reload`.
        self.certificate = _certificate(settings, conditions)
        # Read again by `reload`.
        operators = _files("--operator-tokens", settings.operator_tokens)
        clients = _files("--subscriber-tokens", settings.subscriber_tokens)
        # All files of tokens that the settings name.
        self._files = [*clients, *operators]
        # By path.
        # It does not change: a guard reads the tokens of its files for each request.
        self.guards = _guards(clients, operators)

    @property
    def tls(self) -> Callable[[], SSLContext] | None:
        """What returns the context of new handshakes; None: there is no TLS.

        It is called for each handshake, so a new certificate counts for the next one.
        """
        certificate = self.certificate
        return None if certificate is None else lambda: certificate.context

    @property
    def certificate_expires_s(self) -> float | None:
        """When the certificate expires, in unix seconds; None: there is no TLS."""
        return None if self.certificate is None else self.certificate.expires.timestamp()

    def check(self) -> None:
        """Use a new certificate if there is one. To be called now and then.

        Nothing happens without TLS. Called about once a second; it costs two system calls while the files
        stay as they are.
        """
        if self.certificate is not None:
            self.certificate.check()

    def reload(self) -> None:
        """Read all files again.

        Called at a SIGHUP. A file that cannot be used keeps what was read before, and is logged or becomes
        a condition.
        """
        self.check()
        for file in self._files:
            file.reload()


def _certificate(settings: Settings, conditions: Conditions) -> Certificate | None:
    """Return the certificate of the settings; None without one. Raises SettingError.

    A file with both parts needs `--tls-cert` only.
    """
    chain, key = settings.tls_cert, settings.tls_key
    if chain is None:
        if key is not None:
            raise SettingError("--tls-key", str(key), "needs a certificate: --tls-cert")
        return None
    from jetstream.web.certificate import Certificate  # noqa: PLC0415 - for TLS only

    return Certificate(chain, key or chain, conditions)


def _files(flag: str, path: Path | None) -> list[TokenFile]:
    """Return the file of a setting, if one is set. Raises SettingError if it cannot be used."""
    return [] if path is None else [TokenFile(flag, path)]


def _guards(clients: list[TokenFile], operators: list[TokenFile]) -> Mapping[str, Guard]:
    """Return the guard of each path that has one.

    `clients` are the files of `--subscriber-tokens`, `operators` those of `--operator-tokens`. A token of
    an operator is good for events, too.
    """
    guards: dict[str, Guard] = {}
    if clients:
        guards |= dict.fromkeys(EVENTS, NeedsToken([*clients, *operators], in_query=True))
    if operators:
        guards |= dict.fromkeys((*FIGURES, *SUBSCRIBERS), NeedsToken(operators))
    else:
        guards |= dict.fromkeys(SUBSCRIBERS, OnlyLocal())
    return guards
