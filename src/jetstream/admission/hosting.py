"""Accepts a message of a PDS only for an account of its own, and knows what to wait for (see `pds`)."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any

from jetstream.admission.examiners.examination import Finding
from jetstream.admission.message import IN_REPOSITORIES, Message
from jetstream.admission.parts import Keyring
from jetstream.admission.pds import Hosts
from jetstream.admission.rules import Rules


class Hosting:
    """Which sources are PDSes, and which accounts they speak for."""

    def __init__(self, rules: Rules, keys: Keyring | None) -> None:
        self._rules = rules
        self._keys = keys
        # The PDSes among the sources. Replaced when these change.
        self._hosts = Hosts({})

    def use(self, urls: Mapping[str, str]) -> None:
        """Set the sources that are PDSes: the URL of each, by its name."""
        self._hosts = Hosts(urls)

    def source_of(self, did: str) -> str | None:
        """Return the source that is the PDS of an account, as far as that is known."""
        return self._hosts.source_of(self._keys.pds(did)) if self._hosts and self._keys else None

    def missing(self, message: Message) -> Coroutine[Any, Any, Finding | None] | None:
        """Return what a message must wait for until `accepts` can tell; None: it can."""
        if message.is_let_go or message.is_placed or self._keys is None or message.source not in self._hosts:
            return None
        must_ask = message.envelope.type == "identity"  # the first message after a move
        if not must_ask and self._hosts.speaks_for(message.source, self._keys.pds(message.did)):
            return None
        message.is_placed = True
        return self._place(message, self._keys)

    def accepts(self, message: Message) -> bool:
        """Return whether a source may speak for the account of a message.

        If its document cannot be had, that is decided as with a key that cannot: but what is not signed is
        dropped, for anybody could say so.
        """
        if self._keys is None or message.source not in self._hosts:
            return True
        speaks = self._hosts.speaks_for(message.source, self._keys.pds(message.did))
        if speaks is None:
            return self._rules.pass_unverified and message.envelope.type in IN_REPOSITORIES
        return speaks

    async def _place(self, message: Message, keys: Keyring) -> Finding | None:
        await keys.find_pds(message.did)
        return message.finding
