"""A whole network: one world, and the server of its firehose, its repositories and its directory."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from jetstream.simulator import recording, server
from jetstream.simulator.directory import Directory
from jetstream.simulator.faults import Faults
from jetstream.simulator.firehose import LiveFirehose, Replay
from jetstream.simulator.mishaps import Mishaps
from jetstream.simulator.stream import Sink, Stream
from jetstream.simulator.world import Clock, Population, World
from jetstream.simulator.xrpc import Repositories

_PDS = "http://127.0.0.1:7777"


class Network:
    """Puts the parts together. `url` is where the accounts' documents say that their server is.

    `truth` and `ledger` take lines, `record` takes frames, see `Stream`.
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
    ) -> None:
        rates = rates or Faults()
        self.url = _PDS
        self.world = World(population, seed, clock)
        self.stream = Stream(self.world, rates, seed, truth=truth, ledger=ledger, record=record)
        self.firehose = LiveFirehose(self.stream)
        self.mishaps = Mishaps(rates, seed, self.stream.note)

    def app(self) -> web.Application:
        """Build the server."""
        directory = Directory(self.document, self.mishaps)
        repositories = Repositories(self.stream, self.mishaps)
        return server.build(self.firehose, [*repositories.routes(), *directory.routes()])

    def document(self, did: str) -> dict[str, object] | None:
        """Write the DID document of an account, None of a stranger."""
        return self.world.document(did, self.url)

    def documents(self) -> dict[str, object]:
        """Write the DID documents of all accounts, the departed too."""
        return {did: self.document(did) for did in self.world.people}


def replay_app(path: Path, rate: float, *, in_memory: bool) -> web.Application:
    """Build the server of a recording, with the directory of the documents beside it."""
    documents = recording.read_documents(path)
    quiet = Mishaps(Faults(), 0, lambda *_, **__: None)

    def find(did: str) -> dict[str, object] | None:
        found = documents.get(did)
        return found if isinstance(found, dict) else None

    return server.build(Replay(path, rate, in_memory=in_memory), Directory(find, quiet).routes())
