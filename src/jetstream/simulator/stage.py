"""A network that does only what it is told: for tests, so that none of them waits for luck."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson

from jetstream.simulator import server
from jetstream.simulator.faults import SERVED, Faults
from jetstream.simulator.frames import Message
from jetstream.simulator.network import Network
from jetstream.simulator.world import Population, SteadyClock, World

START_US: Final = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
STEP_US: Final = 2500

Event = dict[str, Any]


class SimulatedNetwork:
    """A network on a free port of this machine, silent until it is told to speak.

    `truth` holds every event that a correct Jetstream must have emitted so far, as v1 JSON without `time_us`;
    `ledger` every fault so far, see `jetstream.simulator.faults`. `world` makes messages for `publish`.
    """

    def __init__(self, population: Population, seed: int, faults: Faults) -> None:
        self.truth: list[Event] = []
        self.ledger: list[Event] = []
        self._network = Network(
            population,
            seed,
            SteadyClock(START_US, STEP_US),
            faults,
            truth=lambda line: self.truth.append(orjson.loads(line)),
            ledger=lambda line: self.ledger.append(orjson.loads(line)),
        )
        self._living: asyncio.Task[None] | None = None

    @property
    def world(self) -> World:
        """The accounts, and what they can be made to do."""
        return self._network.world

    @property
    def url(self) -> str:
        """Where the directory and the XRPC endpoints are: `http://…`, without a slash at the end."""
        return self._network.url

    @property
    def firehose_url(self) -> str:
        """The address of `com.atproto.sync.subscribeRepos`: `ws://…`."""
        return "ws" + self.url.removeprefix("http") + server.SUBSCRIBE

    @property
    def seq(self) -> int:
        """The number of the newest frame."""
        return self._network.stream.seq

    def emit(self, count: int = 1, *, faults: Iterable[str] = ()) -> list[Event]:
        """Let so many things be said, with these faults among them. Return the events that must come of it.

        A fault waits for the first message that it suits; it may need more than one.
        Raises ValueError for an unknown fault.
        """
        before = len(self.truth)
        self.inject(*faults)
        for _ in range(count):
            self._network.stream.advance()
        self._network.firehose.publish()
        return self.truth[before:]

    def publish(self, *messages: Message) -> list[Event]:
        """Say these messages, made by `world`. Return the events that must come of it."""
        before = len(self.truth)
        for message in messages:
            self._network.stream.say(message)
        self._network.firehose.publish()
        return self.truth[before:]

    def inject(self, *faults: str) -> None:
        """Make each of these faults happen once: at the next message or request that it suits.

        Raises ValueError for an unknown one.
        """
        for name in faults:
            if name in SERVED:
                self._network.mishaps.inject(name)
            else:
                self._network.stream.inject(name)

    def resume(self, rate: float = 100.0) -> None:
        """Let the network live by itself, at so many messages a second, or at 0 as fast as it is read."""
        self.pause()
        self._living = asyncio.create_task(self._network.firehose.run(rate))

    async def run(self, count: int, rate: float = 0) -> None:
        """Let the network live until it has said so much: as fast as it is read, or at a rate a second.

        At rate 0 it waits for readers: somebody must listen.
        """
        await self._network.firehose.run(rate, count)

    def calm(self) -> None:
        """Let nothing go wrong in the firehose by chance any more, and forget what was about to."""
        self._network.stream.calm()

    def pause(self) -> None:
        """Let nothing happen by itself any more."""
        if self._living is not None:
            self._living.cancel()
            self._living = None

    async def wait_subscribed(self, count: int = 1) -> None:
        """Wait until at least so many subscribers listen to the firehose."""
        await self._network.firehose.wait_subscribed(count)

    async def wait_taken(self) -> None:
        """Wait until all that was said has been written to every subscriber that listens."""
        await self._network.firehose.wait_taken()

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[SimulatedNetwork]:
        """Serve while the block runs. A network that stops and serves again goes on where it was."""
        async with server.serving(self._network.app(), port=port) as bound:
            self._network.url = f"http://{server.HOST}:{bound}"
            try:
                yield self
            finally:
                self.pause()


def simulated_network(
    *, repos: int = 20, records: int = 10, seed: int = 0, faults: Faults | None = None
) -> SimulatedNetwork:
    """Make a network, the same one for the same arguments; serve it with `async with network.serving():`."""
    return SimulatedNetwork(Population(repos=repos, records=records), seed, faults or Faults())
