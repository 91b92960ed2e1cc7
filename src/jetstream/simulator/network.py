"""A whole network: one world, and the hosts that serve it: relays and PDSes, each with the directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from jetstream.errors import SettingError
from jetstream.simulator import recording, server, truth
from jetstream.simulator.directory import Directory, Sleep
from jetstream.simulator.faults import Faults
from jetstream.simulator.feed import Feed
from jetstream.simulator.firehose import LiveFirehose, Replay
from jetstream.simulator.frames import Message
from jetstream.simulator.hosted import HostedRepos
from jetstream.simulator.identities import OperationLog, document_in
from jetstream.simulator.ledger import Sink
from jetstream.simulator.losses import Fate, Losses
from jetstream.simulator.pacing import Signal, at_rate, on_demand
from jetstream.simulator.relays import Relay, check_relays, pds_name
from jetstream.simulator.replayed import RecordedRepos
from jetstream.simulator.request_faults import RequestFaults
from jetstream.simulator.stream import WINDOW_FRAMES, Stream
from jetstream.simulator.world import Clock, Population, World
from jetstream.simulator.xrpc import Repositories

_URL: Final = "http://127.0.0.1:7777"
_PDS_WINDOW_MIN: Final = 100  # frames; all PDSes together have the window of one relay, if they are few
_PORT_MAX: Final = 65_535
_AT_ONCE: Final = 200  # messages in one turn at rate 0
_BEHIND_MAX: Final = 1000  # at rate 0, the world waits for a subscriber that is further behind


@dataclass(frozen=True, slots=True, kw_only=True)
class Sinks:
    """Where lines of JSON and frames go, see `Stream`. The frames are those of the first relay."""

    truth: Sink | None = None
    ledger: Sink | None = None
    verdicts: Sink | None = None
    record: Sink | None = None


class Network:
    """The parts of a network, connected.

    With one relay, the truth has what that relay sends. With several, it has what happens in the world, and
    identities and accounts have no `seq`. `sleep` delays slow responses. Raises SettingError for relays that
    cannot be together.
    """

    def __init__(
        self,
        population: Population,
        seed: int,
        clock: Clock,
        rates: Faults | None = None,
        *,
        sinks: Sinks = Sinks(),
        relays: tuple[Relay, ...] = (Relay(),),
        disjoint: bool = False,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        check_relays(relays, disjoint=disjoint, pdses=population.pds)
        self.world = World(population, seed, clock)
        self._relay_options = relays
        self._rates = rates or Faults()
        self._seed = seed
        self._sinks = sinks
        self._moved = Signal()  # a subscriber of any host came, went or was written to
        self._losses = Losses(relays, seed, disjoint=disjoint)
        self._events = 0  # how many the truth has
        self._messages = self.world.messages()
        self._sleep = sleep
        self.relays = [self._relay(place, relay) for place, relay in enumerate(relays)]
        self.pdses = [self._pds(number) for number in range(1, population.pds + 1)]
        self.feeds = {feed.name: feed for feed in (*self.relays, *self.pdses)}  # every host, by name
        self._log = OperationLog(self.world.changes, self._host_of)
        self.set_urls([_URL] * len(self.feeds))
        self.stream = self.relays[0].stream
        self.request_faults = RequestFaults(self._rates, seed, self.stream.log_fault)

    @property
    def url(self) -> str:
        """The base URL of the first relay."""
        return self.relays[0].url

    def advance(self) -> None:
        """Let the world make a message, and the hosts append it."""
        self.append(next(self._messages))

    def append(self, message: Message) -> None:
        """Append a message of the world to the streams of the hosts that get it."""
        self.append_to(message, self._losses.fates(self.world.now_us))

    def append_to(self, message: Message, fates: list[Fate]) -> None:
        """Append a message, or lose it, as `fates` say for each relay. The PDS of the account gets it."""
        index = None if len(self.relays) == 1 else self._events
        for relay, fate in zip(self.relays, fates, strict=True):
            relay.receive(message, index, fate)
        if index is not None:
            self._add_truth(message)
        pds = self._pds_of(message.did)
        if pds is not None:
            pds.receive(message, index)

    def publish(self) -> None:
        """Notify all subscribers that the streams have grown."""
        for feed in self.feeds.values():
            feed.firehose.publish()

    async def run(self, rate: float, count: int | None = None) -> None:
        """Let the world make messages, `rate` a second, `count` of them or without end.

        At rate 0 it makes them as fast as the slowest subscriber reads, and waits while there is none.
        """
        left = count
        async for due in at_rate(rate) if rate else on_demand(_AT_ONCE, self._wait_wanted):
            made = due if left is None else min(due, left)
            for _ in range(made):
                self.advance()
            self.publish()
            if left is not None:
                left -= made
                if not left:
                    self.end_outages()
                    return

    def end_outages(self) -> None:
        """Let all relays accept connections again."""
        for relay in self.relays:
            relay.firehose.set_out(False)

    async def wait_subscribed(self, count: int = 1) -> None:
        """Wait until all hosts together have at least `count` subscribers."""
        await self._moved.wait_until(lambda: sum(self._active()) >= count)

    async def wait_written(self) -> None:
        """Wait until everything published has been written to every subscriber."""
        await self._moved.wait_until(lambda: self._behind() == 0)

    @asynccontextmanager
    async def serving(self, host: str = server.HOST, port: int = 0) -> AsyncIterator[None]:
        """Serve all hosts while the block runs, on ports from `port` upwards; with 0 on free ones.

        A relay with a port of its own listens there. Raises JetstreamError if one cannot listen.
        """
        async with AsyncExitStack() as stack:
            urls = []
            for app, wanted in zip(self.apps(), self.ports(port), strict=True):
                bound = await stack.enter_async_context(server.serving(app, host, wanted))
                urls.append(f"http://{host}:{bound}")
            self.set_urls(urls)
            yield

    def ports(self, first: int) -> list[int]:
        """Return the ports of the relays and the PDSes, the first one being `first`; 0 means a free one.

        Raises SettingError if there are too few.
        """
        ports: list[int] = []
        for own in (*(relay.port for relay in self._relay_options), *[None] * len(self.pdses)):
            after = ports[-1] + 1 if ports and ports[-1] else 0
            ports.append(own if own is not None else after if ports else first)
        if max(ports) > _PORT_MAX:
            raise SettingError("--port", first, f"leaves too few ports for {len(ports)} hosts")
        return ports

    def set_urls(self, urls: list[str]) -> None:
        """Set where the relays and then the PDSes are served, as documents name them."""
        for feed, url in zip(self.feeds.values(), urls, strict=True):
            feed.url = url
        self._log.forget_signed()

    def apps(self) -> list[web.Application]:
        """Return new applications that serve the relays and the PDSes."""
        relays = [self._app(relay, None) for relay in self.relays]
        return relays + [self._app(pds, number) for number, pds in enumerate(self.pdses, 1)]

    def document(self, did: str) -> dict[str, object] | None:
        """Return the DID document of an account, None for an unknown DID."""
        return self.world.document(did, self._host_of(did))

    def documents(self) -> dict[str, object]:
        """Return what tells the keys of all accounts, including deleted ones, by DID.

        It is the audit log of an account whose key was rotated, and the DID document of any other. A did:web
        has no log.
        """
        keys: dict[str, set[str]] = {}
        for change in self.world.changes:
            keys.setdefault(change.did, set()).add(change.key)
        logs = {did: self._log.audit(did) for did, known in keys.items() if len(known) > 1}
        return {did: logs.get(did) or self.document(did) for did in self.world.all_accounts}

    def _relay(self, place: int, relay: Relay) -> Feed:
        only = len(self._relay_options) == 1
        first = place == 0
        stream = Stream(
            self.world,
            self._rates if relay.faults is None else relay.faults,
            self._seed if first else f"{self._seed} {relay.name}",
            name=relay.name,
            seq=relay.seq,
            truth=self._sinks.truth if only else None,
            ledger=self._sinks.ledger,
            verdicts=self._sinks.verdicts,
            record=self._sinks.record if first else None,
            share=lambda message: self._share(message, relay.name),
        )
        firehose = LiveFirehose(stream, lag_s=relay.lag_s, moved=self._moved)
        return Feed(stream, firehose, seed=f"{self._seed} {relay.name}", takedowns=relay.takedowns)

    def _pds(self, number: int) -> Feed:
        window = max(_PDS_WINDOW_MIN, WINDOW_FRAMES // self.world.population.pds)
        stream = Stream(self.world, name=pds_name(number), window=window)
        return Feed(stream, LiveFirehose(stream, moved=self._moved), seed=self._seed)

    def _app(self, feed: Feed, number: int | None) -> web.Application:
        directory = Directory(self.document, self.request_faults, self._sleep, log=self._log)
        repositories = Repositories(HostedRepos(feed, number, self.pdses), self.request_faults)
        return server.build(feed.firehose, [*repositories.routes(), *directory.routes()])

    def _share(self, message: Message, sender: str) -> None:
        """Let the other hosts send a message that the world has made for a fault of one of them."""
        pds = self._pds_of(message.did)
        for feed in (*self.relays, *([] if pds is None else [pds])):
            if feed.name != sender and message.did not in feed.taken_down:
                feed.stream.append_intact(message)

    def _add_truth(self, message: Message) -> None:
        events = truth.events_of(message, None)
        self._events += len(events)
        if self._sinks.truth is not None:
            for event in events:
                self._sinks.truth(truth.to_json(event))

    def _pds_of(self, did: str) -> Feed | None:
        """Return the PDS of an account; None for one that lives on the relay, and for a malformed DID."""
        account = self.world.all_accounts.get(did)
        return self.pdses[account.host - 1] if account is not None and account.host else None

    def _host_of(self, did: str) -> str:
        pds = self._pds_of(did)
        return self.url if pds is None else pds.url

    def _active(self) -> list[int]:
        return [feed.firehose.active() for feed in self.feeds.values()]

    def _behind(self) -> int:
        return max(feed.firehose.behind() for feed in self.feeds.values())

    async def _wait_wanted(self) -> None:
        await self._moved.wait_until(self._wanted)

    def _wanted(self) -> bool:
        """Return whether the world may go on. While a relay is out, it must, for the outage to end."""
        out = any(relay.firehose.out for relay in self.relays)
        return (out or any(self._active())) and self._behind() < _BEHIND_MAX


def replay_app(path: Path, rate: float, *, in_memory: bool) -> web.Application:
    """Return an application that serves a recording, its repositories, and the DID documents beside it."""
    found = recording.read_documents(path)
    documents = {did: document for did, each in found.items() if (document := document_in(did, each))}
    no_faults = RequestFaults(Faults(), 0, lambda *_, **__: None)
    repositories = Repositories(RecordedRepos(path, documents), no_faults)
    routes = [*repositories.routes(), *Directory(documents.get, no_faults).routes()]
    return server.build(Replay(path, rate, in_memory=in_memory), routes)
