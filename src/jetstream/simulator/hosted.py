"""The repositories of a host of a world, as that host serves them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import urlsplit

from jetstream.simulator.account import SimulatedAccount
from jetstream.simulator.feed import Feed
from jetstream.simulator.xrpc import HostedRepo, Json


class HostedRepos:
    """The repositories of all accounts of a relay, or of those of one PDS.

    `number` is that of the PDS; None for a relay, whose firehose comes from the host of everybody else, which
    is the relay itself, and from `pdses`.
    """

    def __init__(self, feed: Feed, number: int | None, pdses: Sequence[Feed]) -> None:
        self._feed = feed
        self._number = number
        self._pdses = pdses
        self._world = feed.stream.world

    async def all(self) -> Iterable[HostedRepo]:
        """Return all of them, in the order of their creation."""
        return (self._hosted(account) for account in self._accounts())

    async def find(self, did: str) -> HostedRepo | None:
        """Return one of them, also of a deleted account."""
        account = self._world.all_accounts.get(did)
        return None if account is None or not self._serves(account) else self._hosted(account)

    async def with_collection(self, collection: str) -> Iterable[HostedRepo]:
        """Return those that have records of a collection."""
        prefix = f"{collection}/"
        return (
            self._hosted(account)
            for account in self._accounts()
            if any(path.startswith(prefix) for path in account.paths)
        )

    async def export(self, did: str) -> bytes:
        """Return a repository as a CAR file."""
        return self._world.all_accounts[did].repo.export()

    async def hosts(self, own: str) -> Sequence[Json]:
        """Return this host and, if it is a relay, the PDSes. Those with a firehose of their own come last."""
        accounts = Counter(account.host for account in self._world.accounts)
        if self._number is not None:
            return [_host(own, self._feed, accounts[self._number])]
        pdses = (
            _host(urlsplit(pds.url).netloc, pds, accounts[number])
            for number, pds in enumerate(self._pdses, 1)
        )
        return [_host(own, self._feed, accounts[0]), *pdses]

    def _accounts(self) -> Iterator[SimulatedAccount]:
        return filter(self._serves, self._world.all_accounts.values())

    def _serves(self, account: SimulatedAccount) -> bool:
        return self._number is None or account.host == self._number

    def _hosted(self, account: SimulatedAccount) -> HostedRepo:
        active, status = self._feed.status_of(account)
        repo = account.repo
        head = None if repo.head is None else str(repo.head.cid)
        return HostedRepo(account.did, active, status, repo.rev, head)


def _host(name: str, feed: Feed, accounts: int) -> Json:
    return {"hostname": name, "seq": feed.stream.seq, "accountCount": accounts, "status": "active"}
