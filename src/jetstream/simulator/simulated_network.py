"""A network for tests, in which only that happens what the test asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson

from jetstream.simulator import server
from jetstream.simulator.directory import Sleep
from jetstream.simulator.faults import REQUEST_FAULTS, Faults
from jetstream.simulator.feed import Feed
from jetstream.simulator.frames import Message
from jetstream.simulator.ledger import missing
from jetstream.simulator.losses import Fate
from jetstream.simulator.network import Network, Sinks
from jetstream.simulator.relays import Relay
from jetstream.simulator.world import Population, SteadyClock, World

START_US: Final = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
STEP_US: Final = 2500  # between two readings of the clock

Event = dict[str, Any]


class SimulatedNetwork:
    """A network on a free port of this machine. It is silent until the test lets something happen."""

    def __init__(
        self,
        population: Population,
        seed: int,
        faults: Faults,
        sleep: Sleep,
        *,
        relays: tuple[Relay, ...] = (Relay(),),
        disjoint: bool = False,
    ) -> None:
        # Every event that a correct Jetstream must have emitted so far, as v1 JSON without `time_us`.
        self.truth: list[Event] = []
        # Every fault so far; docs/simulator.md has the fields.
        self.ledger: list[Event] = []
        # What a full verifier must say of every commit and sync so far; docs/simulator.md has the fields.
        self.verdicts: list[Event] = []
        self._network = Network(
            population,
            seed,
            SteadyClock(START_US, STEP_US),
            faults,
            sinks=Sinks(truth=_into(self.truth), ledger=_into(self.ledger), verdicts=_into(self.verdicts)),
            relays=relays,
            disjoint=disjoint,
            sleep=sleep,
        )
        self._running: asyncio.Task[None] | None = None  # since `resume`, until `pause`

    @property
    def world(self) -> World:
        """The accounts. Its methods make the messages for `publish`."""
        return self._network.world

    @property
    def url(self) -> str:
        """The base URL of the directory and the XRPC endpoints: `http://…`, without a slash at the end."""
        return self._network.url

    @property
    def urls(self) -> dict[str, str]:
        """The base URLs of all relays and PDSes, by name."""
        return {name: feed.url for name, feed in self._network.feeds.items()}

    @property
    def firehose_url(self) -> str:
        """The URL of `com.atproto.sync.subscribeRepos`: `ws://…`."""
        return self.firehose_urls[self._network.relays[0].name]

    @property
    def firehose_urls(self) -> dict[str, str]:
        """The same of all relays and PDSes, by name."""
        return {name: "ws" + url.removeprefix("http") + server.SUBSCRIBE for name, url in self.urls.items()}

    @property
    def seq(self) -> int:
        """The number of the newest frame of the first relay."""
        return self._network.stream.seq

    def emit(self, count: int = 1, *, faults: Iterable[str] = ()) -> list[Event]:
        """Publish `count` random messages, with these faults among them. Return the events that must result.

        A fault occurs at the first message to which it applies, which may be after these. Raises ValueError
        for an unknown fault.
        """
        before = len(self.truth)
        self.inject(*faults)
        for _ in range(count):
            self._network.advance()
        self._network.publish()
        return self.truth[before:]

    def publish(self, *messages: Message, only: Iterable[str] | None = None) -> list[Event]:
        """Publish messages made by `world`. Return the events that must result.

        With `only`, the other relays lose the messages. Raises ValueError for a name that is not of a relay.
        """
        before = len(self.truth)
        for message in messages:
            if only is None:
                self._network.append(message)
            else:
                self._network.append_to(message, self._fates(set(only)))
        self._network.publish()
        return self.truth[before:]

    def send(self, host: str, *messages: Message) -> None:
        """Let one relay or PDS send messages that are not of the world. The truth has none of their events.

        Raises ValueError for an unknown host.
        """
        feed = self._feed(host)
        for message in messages:
            feed.stream.append_intact(message)
        self._network.publish()

    def take_down(self, did: str, relay: str) -> None:
        """Let one relay take an account down: it says so, and leaves out what the account does after that."""
        self._feed(relay).take_down(did)
        self._network.publish()

    def restore(self, did: str, relay: str) -> None:
        """End what `take_down` began."""
        self._feed(relay).restore(did)
        self._network.publish()

    def missing(self, *relays: str, level: str = "cid") -> set[int]:
        """Return which events of `truth`, by index, a correct reader of these relays does not have.

        It checks up to `level`. Without relays, it reads all of them.
        """
        names = relays or tuple(relay.name for relay in self._network.relays)
        return missing(self.ledger, names, level)

    def inject(self, *faults: str) -> None:
        """Let each of these faults occur once: at the next message or request to which it applies.

        Raises ValueError for an unknown fault.
        """
        for name in faults:
            if name in REQUEST_FAULTS:
                self._network.request_faults.inject(name)
            else:
                self._network.stream.inject(name)

    def resume(self, rate: float = 100.0) -> None:
        """Publish random messages in the background: `rate` a second, or with 0 as fast as they are read."""
        self.pause()
        self._running = asyncio.create_task(self._network.run(rate))

    async def run(self, count: int, rate: float = 0) -> None:
        """Publish `count` random messages: `rate` a second, or with 0 as fast as they are read.

        At rate 0 it waits for subscribers; there must be one.
        """
        await self._network.run(rate, count)

    def clear_faults(self) -> None:
        """Let no more faults occur in the firehoses by chance, and forget the injected ones."""
        for relay in self._network.relays:
            relay.stream.clear_faults()

    def pause(self) -> None:
        """End what `resume` started."""
        if self._running is not None:
            self._running.cancel()
            self._running = None

    async def wait_subscribed(self, count: int = 1) -> None:
        """Wait until the relays and PDSes together have at least `count` subscribers."""
        await self._network.wait_subscribed(count)

    async def wait_written(self) -> None:
        """Wait until everything published has been written to every subscriber."""
        await self._network.wait_written()

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[SimulatedNetwork]:
        """Serve while the block runs. It may be served again later, and continues where it was."""
        async with self._network.serving(port=port):
            try:
                yield self
            finally:
                self.pause()

    def _feed(self, host: str) -> Feed:
        if host not in self._network.feeds:
            raise ValueError(f"{host} is not one of {', '.join(self._network.feeds)}")
        return self._network.feeds[host]

    def _fates(self, only: set[str]) -> list[Fate]:
        """Return what becomes of a message that only some relays get."""
        relays = [relay.name for relay in self._network.relays]
        if not only <= set(relays):
            raise ValueError(f"{sorted(only)} are not all relays: those are {', '.join(relays)}")
        return [Fate.SENT if name in only else Fate.LOST for name in relays]


def _into(events: list[Event]) -> Callable[[bytes], None]:
    return lambda line: events.append(orjson.loads(line))


def simulated_network(  # noqa: PLR0913 - all have names
    *,
    repos: int = 20,
    records: int = 10,
    seed: int = 0,
    faults: Faults | None = None,
    sleep: Sleep = asyncio.sleep,
    rotations: float = 0,
    did_web: float = 0,
    pds: int = 0,
    pds_share: float = 0.5,
    relays: Iterable[Relay] = (Relay(),),
    disjoint: bool = False,
) -> SimulatedNetwork:
    """Return a network of `repos` accounts with `records` records each. Serve it with `serving`.

    The same arguments make the same network. `faults` are rates at which faults occur by chance, at every
    relay that has none of its own. `sleep` is called with the seconds that a slow response takes.
    `disjoint`: no message is lost by two relays. Raises SettingError for relays that cannot be together.
    """
    population = Population(
        repos=repos,
        records=records,
        rotations=rotations,
        did_web=did_web,
        pds=pds,
        pds_share=pds_share,
    )
    return SimulatedNetwork(
        population, seed, faults or Faults(), sleep, relays=tuple(relays), disjoint=disjoint
    )
