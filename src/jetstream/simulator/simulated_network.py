"""A network for tests, in which only that happens what the test asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson

from jetstream.simulator import server
from jetstream.simulator.directory import Sleep
from jetstream.simulator.faults import REQUEST_FAULTS, Faults
from jetstream.simulator.frames import Message
from jetstream.simulator.network import Network
from jetstream.simulator.world import Population, SteadyClock, World

START_US: Final = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
STEP_US: Final = 2500  # between two readings of the clock

Event = dict[str, Any]


class SimulatedNetwork:
    """A network on a free port of this machine. It is silent until the test lets something happen."""

    def __init__(self, population: Population, seed: int, faults: Faults, sleep: Sleep) -> None:
        # Every event that a correct Jetstream must have emitted so far, as v1 JSON without `time_us`.
        self.truth: list[Event] = []
        # Every fault so far; docs/simulator.md has the fields.
        self.ledger: list[Event] = []
        self._network = Network(
            population,
            seed,
            SteadyClock(START_US, STEP_US),
            faults,
            truth=lambda line: self.truth.append(orjson.loads(line)),
            ledger=lambda line: self.ledger.append(orjson.loads(line)),
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
    def firehose_url(self) -> str:
        """The URL of `com.atproto.sync.subscribeRepos`: `ws://…`."""
        return "ws" + self.url.removeprefix("http") + server.SUBSCRIBE

    @property
    def seq(self) -> int:
        """The number of the newest frame."""
        return self._network.stream.seq

    def emit(self, count: int = 1, *, faults: Iterable[str] = ()) -> list[Event]:
        """Publish `count` random messages, with these faults among them. Return the events that must result.

        A fault occurs at the first message to which it applies, which may be after these. Raises ValueError
        for an unknown fault.
        """
        before = len(self.truth)
        self.inject(*faults)
        for _ in range(count):
            self._network.stream.advance()
        self._network.firehose.publish()
        return self.truth[before:]

    def publish(self, *messages: Message) -> list[Event]:
        """Publish messages made by `world`. Return the events that must result."""
        before = len(self.truth)
        for message in messages:
            self._network.stream.append(message)
        self._network.firehose.publish()
        return self.truth[before:]

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
        self._running = asyncio.create_task(self._network.firehose.run(rate))

    async def run(self, count: int, rate: float = 0) -> None:
        """Publish `count` random messages: `rate` a second, or with 0 as fast as they are read.

        At rate 0 it waits for subscribers; there must be one.
        """
        await self._network.firehose.run(rate, count)

    def clear_faults(self) -> None:
        """Let no more faults occur in the firehose by chance, and forget the injected ones."""
        self._network.stream.clear_faults()

    def pause(self) -> None:
        """End what `resume` started."""
        if self._running is not None:
            self._running.cancel()
            self._running = None

    async def wait_subscribed(self, count: int = 1) -> None:
        """Wait until the firehose has at least `count` subscribers."""
        await self._network.firehose.wait_subscribed(count)

    async def wait_written(self) -> None:
        """Wait until everything published has been written to every subscriber."""
        await self._network.firehose.wait_written()

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[SimulatedNetwork]:
        """Serve while the block runs. It may be served again later, and continues where it was."""
        async with server.serving(self._network.app(), port=port) as bound:
            self._network.url = f"http://{server.HOST}:{bound}"
            try:
                yield self
            finally:
                self.pause()


def simulated_network(
    *,
    repos: int = 20,
    records: int = 10,
    seed: int = 0,
    faults: Faults | None = None,
    sleep: Sleep = asyncio.sleep,
) -> SimulatedNetwork:
    """Return a network of `repos` accounts with `records` records each. Serve it with `serving`.

    The same arguments make the same network. `faults` are rates at which faults occur by chance. `sleep` is
    called with the seconds that a slow response takes.
    """
    return SimulatedNetwork(Population(repos=repos, records=records), seed, faults or Faults(), sleep)
