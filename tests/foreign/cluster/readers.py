"""Readers that change edges with nothing but a cursor, readers that stay, and readers that read all again."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

import orjson
import zstandard
from tests.foreign.cluster.facts import V2_KINDS, Fact, Wanted, of_v1, of_v2
from tests.foreign.cluster.verdict import Problem, Report, Stream
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from jetstream.dictionary import own

_PATHS: Final = {"v1": "/v1/subscribe", "v2": "/xrpc/network.bsky.jetstream.subscribeEvents"}
_HANDSHAKE_S: Final = 1.0
STAY_S: Final = (0.3, 1.0)  # at one edge
_PAUSE_S: Final = 0.02  # between two edges
_AGAIN_S: Final = 1.5  # between two replays
_GIVE_UP_S: Final = 10.0  # on an edge that is frozen, or was killed
_SETTLE_S: Final = 3.0  # for a reader to be told of a deletion that a replay was already spared
_FAILURES: Final = (ConnectionClosed, OSError, EOFError, InvalidHandshake, TimeoutError)
_DONE: Final = 1000
_GOING: Final = (1001, 1012)  # the server stops
_OVERTAKEN: Final = 1008


class Edge:
    """One edge, as readers know it: where it is, and of which deletions it has told them."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port
        # Whether it should answer.
        self.is_up = True
        # The position of each deletion that a reader has received from the process that runs now.
        self.told: dict[str, int] = {}

    def began(self) -> None:
        """Note that another process has taken its place."""
        self.told = {}
        self.is_up = True


@dataclass
class Reader:
    """One reader: what it asks for, and what it has got."""

    name: str
    wire: str = "v1"
    query: Mapping[str, Any] = field(default_factory=dict)
    wanted: Wanted = field(default_factory=Wanted)
    zstd: bool = False
    # Whether retention may overtake it.
    is_slow: bool = False
    # The positions of what it has got, and the newest of them: all that it knows when it comes back.
    positions: array[int] = field(default_factory=lambda: array("q"))
    newest: int = 0
    # How often it has connected.
    hops: int = 0


def hopping(dids: Sequence[str]) -> list[Reader]:
    """Return twelve readers: of both wires, compressed or not, with filters or without."""
    some, likes = tuple(dids[:15]), "app.bsky.feed.like"
    feeds = ("app.bsky.feed.post", "app.bsky.graph.*")
    changes, unsigned = frozenset({"delete", "update"}), frozenset({"identity", "account"})
    return [
        Reader("v1"),
        Reader("v1 again"),
        Reader("v1 zstd", zstd=True),
        Reader("v2", "v2", wanted=Wanted(V2_KINDS)),
        Reader("v2 zstd", "v2", wanted=Wanted(V2_KINDS), zstd=True),
        Reader("v1 posts", "v1", {"wantedCollections": feeds}, Wanted(collections=feeds)),
        Reader("v1 zstd likes", "v1", {"wantedCollections": likes}, Wanted(collections=(likes,)), zstd=True),
        Reader("v1 without likes", "v1", {"excludeCollections": likes}, Wanted(excluded=(likes,))),
        Reader("v1 identities", "v1", {"kinds": tuple(unsigned)}, Wanted(unsigned)),
        Reader("v1 changes", "v1", {"operations": tuple(changes)}, Wanted(operations=changes)),
        Reader("v1 some repos", "v1", {"wantedDids": some}, Wanted(dids=frozenset(some))),
        Reader("v2 posts", "v2", {"collections": feeds}, Wanted(V2_KINDS, collections=feeds)),
    ]


class Field:
    """What all readers share."""

    def __init__(self, edges: Sequence[Edge], stream: Stream, report: Report) -> None:
        self.edges = edges
        self.stream = stream
        self.report = report
        # Done when nothing more comes: with the position above the last event.
        self.end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # Replays that were read to their end.
        self.replays = 0
        data = own.PATH.read_bytes()
        self._dictionary_id = int.from_bytes(data[4:8], "little")
        self._decompressor = zstandard.ZstdDecompressor(zstandard.ZstdCompressionDict(data))

    @property
    def stop(self) -> int | None:
        """The position above the last event; None: there may be more."""
        return self.end.result() if self.end.done() else None

    async def read(self, edge: Edge, reader: Reader, for_s: float | None, until: int | None) -> bool:
        """Read on at an edge for some seconds; return whether all below `until` is read."""
        # What is told on this connection counts for those that begin later.
        visit = _Visit(self, edge, reader)
        reader.hops += 1
        try:
            async with asyncio.timeout(for_s), self._connected(edge, reader, until) as socket:
                while True:
                    visit.take(await socket.recv())
        except ConnectionClosed as error:
            return visit.is_over(error)
        except InvalidStatus as error:
            visit.check_refusal(error)
        except _FAILURES:
            pass
        return False

    @asynccontextmanager
    async def _connected(
        self, edge: Edge, reader: Reader, until: int | None
    ) -> AsyncIterator[ClientConnection]:
        """Connect to an edge, with a cursor. The connection is cut at the end."""
        query: dict[str, Any] = {**reader.query, "cursor": reader.newest + 1 if reader.newest else 0}
        if reader.zstd:
            query["zstdDictionary"] = self._dictionary_id
        if until is not None:
            query["until"] = until
        async with connect(
            f"ws://127.0.0.1:{edge.port}{_PATHS[reader.wire]}?{urlencode(query, doseq=True)}",
            compression=None,
            max_size=None,
            max_queue=64,
            ping_interval=None,
            proxy=None,
            open_timeout=_HANDSHAKE_S,
            close_timeout=_HANDSHAKE_S,
        ) as socket:
            try:
                yield socket
            finally:
                socket.transport.abort()

    def parse(self, reader: Reader, message: bytes | str) -> tuple[int, Fact] | None:
        """Return the position and what a message says; None: it is no event."""
        if reader.zstd:
            assert isinstance(message, bytes), "a compressed message is binary"
            message = self._decompressor.decompress(message)
        event = orjson.loads(message)
        if reader.wire == "v1":
            return event["time_us"], of_v1(event)
        payload = event["payload"]
        if not payload["$type"].endswith("#info"):
            return payload["seq"], of_v2(payload)
        if payload["name"] == "OutdatedCursor":
            self.report(Problem("lost", f"{reader.name}: {payload['message']}"))
        return None


class _Visit:
    """One connection of a reader to an edge."""

    def __init__(self, field: Field, edge: Edge, reader: Reader) -> None:
        self._field = field
        self._reader = reader
        self._who = f"{reader.name} at {edge.name}"
        # Of which deletions the process of the edge had told when this began, and has told since.
        self._known = dict(edge.told)
        self._told = edge.told

    def take(self, message: bytes | str) -> None:
        """Take a message."""
        reader = self._reader
        if (found := self._field.parse(reader, message)) is None:
            return
        position, fact = found
        if position <= reader.newest:
            kind = "twice" if position in reader.positions else "back"
            self._report(kind, f"{position} after {reader.newest}")
            return
        reader.positions.append(position)
        reader.newest = position
        self._field.stream.note(position, fact, self._who)
        if fact.ends:
            self._told[fact.did] = position
        elif fact.is_erasable and position < self._known.get(fact.did, 0):
            at = self._known[fact.did]
            self._report("erased", f"{fact} of {position}, although it had told of the deletion at {at}")

    def is_over(self, error: ConnectionClosed) -> bool:
        """Return whether the server has sent all that was asked for; tell of an end that should not be."""
        close = error.rcvd
        if close is not None and close.code == _DONE:
            return True
        allowed = (*_GOING, _OVERTAKEN) if self._reader.is_slow else _GOING
        if close is not None and close.code not in allowed:
            self._report("closed", f"{close.code} {close.reason}")
        return False

    def check_refusal(self, error: InvalidStatus) -> None:
        """Tell of a refusal, unless the edge asks to come again later."""
        status, body = error.response.status_code, error.response.body or b""
        if status != 503:
            self._report("refused", f"{status} {bytes(body).decode()[:300]}")

    def _report(self, kind: str, text: str) -> None:
        self._field.report(Problem(kind, f"{self._who}: {text}"))


async def roam(field: Field, reader: Reader, dice: random.Random) -> None:
    """Read some at one edge, some at another, until all is read."""
    while True:
        edges, stop = [each for each in field.edges if each.is_up], field.stop
        if edges and await field.read(dice.choice(edges), reader, dice.uniform(*STAY_S), stop):
            return
        await asyncio.sleep(_PAUSE_S)


async def stay(field: Field, reader: Reader, edge: Edge) -> None:
    """Read at one edge, and come back to it whenever it was gone, until all is read."""
    while field.stop is None:
        reading = asyncio.ensure_future(field.read(edge, reader, None, None))
        both: set[asyncio.Future[Any]] = {reading, field.end}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()  # of no effect if the connection has ended
        with suppress(asyncio.CancelledError):
            await reading
        await asyncio.sleep(_PAUSE_S)
    while not await field.read(edge, reader, _GIVE_UP_S, field.stop):
        await asyncio.sleep(_PAUSE_S)


async def replay(field: Field, edge: Edge) -> None:
    """Read all that an edge has, again and again."""
    while True:
        await asyncio.sleep(_AGAIN_S)
        if edge.is_up:
            await replay_once(field, edge, field.stream.newest + 1)


async def replay_once(field: Field, edge: Edge, stop: int) -> bool:
    """Read all that an edge has below a position; tell what is missing. Return whether that was done."""
    reader = Reader(f"replay of {edge.name}", is_slow=True)
    if not await field.read(edge, reader, _GIVE_UP_S, stop) or not reader.positions:
        return False
    field.replays += 1

    def lost() -> list[int]:
        return field.stream.lost(reader.positions, reader.wanted, reader.positions[0], stop)

    if lost():
        await asyncio.sleep(_SETTLE_S)
        if found := lost():
            field.report(Problem("lost", f"{reader.name}: {field.stream.show(found)}"))
    return True
