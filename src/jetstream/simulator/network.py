"""A whole network: one world, and the server of its firehose, its repositories and its directory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from aiohttp import web

from jetstream.simulator import recording, server
from jetstream.simulator.directory import Directory, Sleep
from jetstream.simulator.faults import Faults
from jetstream.simulator.firehose import LiveFirehose, Replay
from jetstream.simulator.request_faults import RequestFaults
from jetstream.simulator.stream import Sink, Stream
from jetstream.simulator.world import Clock, Population, World
from jetstream.simulator.xrpc import Repositories

_URL: Final = "http://127.0.0.1:7777"


class Network:
    """The parts of a network, connected.

    `truth` and `ledger` take lines and `record` takes frames, see `Stream`. `sleep` delays slow responses.
    """

    def __init__(
        self,
        population: Population,
        seed: int,
        clock: Clock,
        rates: Faults | None = None,
        *,
        truth: Sink | None = None,
        ledger: Sink | None = None,
        record: Sink | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        rates = rates or Faults()
        self.url = _URL  # of the PDS in DID documents; set it to where the network is served
        self.world = World(population, seed, clock)
        self.stream = Stream(self.world, rates, seed, truth=truth, ledger=ledger, record=record)
        self.firehose = LiveFirehose(self.stream)
        self.request_faults = RequestFaults(rates, seed, self.stream.log_fault)
        self._sleep = sleep

    def app(self) -> web.Application:
        """Return a new application that serves the network."""
        directory = Directory(self.document, self.request_faults, self._sleep)
        repositories = Repositories(self.stream, self.request_faults)
        return server.build(self.firehose, [*repositories.routes(), *directory.routes()])

    def document(self, did: str) -> dict[str, object] | None:
        """Return the DID document of an account, None for an unknown DID."""
        return self.world.document(did, self.url)

    def documents(self) -> dict[str, object]:
        """Return the DID documents of all accounts, including deleted ones."""
        return {did: self.document(did) for did in self.world.all_accounts}


def replay_app(path: Path, rate: float, *, in_memory: bool) -> web.Application:
    """Return an application that serves a recording, with the DID documents beside it."""
    documents = recording.read_documents(path)
    no_faults = RequestFaults(Faults(), 0, lambda *_, **__: None)

    def find(did: str) -> dict[str, object] | None:
        found = documents.get(did)
        return found if isinstance(found, dict) else None

    return server.build(Replay(path, rate, in_memory=in_memory), Directory(find, no_faults).routes())
