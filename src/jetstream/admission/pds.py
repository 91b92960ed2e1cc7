"""Which accounts a source speaks for: a relay for all, a PDS for the accounts that name its host. Pure.

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

from collections.abc import Mapping

from jetstream.identity.addresses import endpoint


class Hosts:
    """The sources that are PDSes. `urls` has the URL of each, by its name; every other source is a relay."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        # The host and port of each PDS, by the name of the source, and the other way around.
        self._hosts = {source: endpoint(url) for source, url in urls.items()}
        self._sources = {host: source for source, host in reversed(self._hosts.items())}

    def __len__(self) -> int:
        """Return how many sources are PDSes."""
        return len(self._hosts)

    def __contains__(self, source: str) -> bool:
        """Return whether a source is a PDS."""
        return source in self._hosts

    def speaks_for(self, source: str, pds: str | None) -> bool | None:
        """Return whether a source may speak for an account; None: its document must be fetched first.

        `pds` is what the document names, as `identity.addresses.endpoint` writes it; empty: nothing. None: it
        is not known.
        """
        host = self._hosts.get(source)
        if host is None:
            return True
        return None if pds is None else pds == host != ""

    def source_of(self, pds: str | None) -> str | None:
        """Return the source that is this PDS; None: none is, or the PDS is not known."""
        return self._sources.get(pds) if pds else None
