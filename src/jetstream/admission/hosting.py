"""Which accounts a source speaks for: a relay for all, a PDS for the accounts that name its host.

Identity and account messages are not signed. Without this rule, any PDS that is a source could say that an
account of another host was deleted.

    the account's document   names the host of the source   accepted
                             names another host, or none    refused
                             is not known                   waits for it, as a message whose key is missing

An account moves to another PDS, whose first message is an `#identity`. So the document is fetched first when
a PDS sends an `#identity`, and once when it names another host than the source
(`identity.Resolver.find_pds`, which asks once in a while only).
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

from jetstream.admission.examiners.examination import Finding
from jetstream.admission.message import IN_REPOSITORIES, Message
from jetstream.admission.parts import Keyring
from jetstream.admission.rules import Rules
from jetstream.identity.addresses import endpoint
from jetstream.steps import Steps


class Hosting:
    """Which accounts a source speaks for.

    Whether it is a PDS is known of each message (`Message.host`): it was so when the message arrived, be the
    source in use by now or not.
    """

    def __init__(self, rules: Rules, keys: Keyring | None) -> None:
        # Decides on what comes from a PDS while no document can be had.
        self._rules = rules
        # Has the documents of accounts; None: no source can be a PDS, and each speaks for all.
        self._keys = keys
        # The names of the sources that are relays, in their order. Replaced by `use`.
        self._relays: tuple[str, ...] = ()
        # The sources that are PDSes, by their host and port. Replaced by `use`.
        self._sources: dict[str, str] = {}

    def use(self, relays: Iterable[str], urls: Mapping[str, str], per_step: int) -> Steps[None]:
        """Set the sources: the names of relays, and the URL of each PDS by its name, `per_step` in a step.

        They are in use after the last step. Of two PDSes with one host, the first is that of its
        accounts.
        """
        sources: dict[str, str] = {}
        for number, (source, url) in enumerate(urls.items(), 1):
            sources.setdefault(endpoint(url), source)
            if number % per_step == 0:
                yield
        self._relays, self._sources = tuple(relays), sources

    def source_of(self, did: str) -> str | None:
        """Return the source that is the PDS of an account, as far as that is known."""
        pds = self._keys.pds(did) if self._sources and self._keys else None
        return self._sources.get(pds) if pds else None

    def speakers(self, did: str) -> tuple[str, ...]:
        """Return the sources that speak for an account, as far as that is known."""
        host = self.source_of(did)
        return self._relays if host is None else (host, *self._relays)

    def speaks_for(self, host: str | None, did: str) -> bool | None:
        """Return whether a PDS may speak for an account; None: its document must be fetched first.

        `host` is that of the PDS. None: it is a relay, which speaks for all.
        """
        if host is None or self._keys is None:
            return True
        pds = self._keys.pds(did)
        return None if pds is None else pds == host != ""

    def missing(self, message: Message) -> Coroutine[Any, Any, Finding | None] | None:
        """Return what a message must wait for until `accepts` can tell; None: it can.

        Each message waits once at most. It takes no key, so its finding stays as it is.
        """
        if message.is_let_go or message.is_placed or self._keys is None or message.host is None:
            return None
        must_ask = message.envelope.type == "identity"  # the first message after a move
        if not must_ask and self.speaks_for(message.host, message.did):
            return None
        message.is_placed = True
        return self._place(message, self._keys)

    def accepts(self, message: Message) -> bool:
        """Return whether a source may speak for the account of a message.

        If its document cannot be had, that is decided as with a key that cannot: but what is not signed is
        dropped, for anybody could say so.
        """
        speaks = self.speaks_for(message.host, message.did)
        if speaks is None:
            return self._rules.pass_unverified and message.envelope.type in IN_REPOSITORIES
        return speaks

    async def _place(self, message: Message, keys: Keyring) -> Finding | None:
        """Fetch the document of an account; return the finding that its message has already, or None."""
        await keys.find_pds(message.did, message.source)
        return message.finding
