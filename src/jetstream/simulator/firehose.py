"""Answer subscriptions to the firehose: of a living world, and of a recording.

Source: the event stream page of the ATProto specification; the reference PDS for the words it uses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Final, Protocol

from aiohttp import WSCloseCode, web

from jetstream.simulator import frames, recording
from jetstream.simulator.faults import Effect
from jetstream.simulator.flow import Flow
from jetstream.simulator.pace import Signal, beats, turns
from jetstream.simulator.recording import Messages
from jetstream.simulator.stream import Stream

_AT_ONCE: Final = 200  # items in one write: about 700 kB
_BEHIND_MAX: Final = 1000  # items that the slowest reader may be behind before the world waits for it
_OUTDATED: Final = "Requested cursor exceeded limit. Possibly missing events"


class Firehose(Protocol):
    """What answers a subscription."""

    async def feed(self, flow: Flow, ws: web.WebSocketResponse, cursor: int | None) -> None:
        """Send everything from a cursor on; return when the connection is ended from this side.

        Raises ConnectionResetError when it ended from the other.
        """
        ...


class Subscriber:
    """One reader of a stream: a position in it, and whether it still hears anything."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.stalled = False


class LiveFirehose:
    """Serves a stream as it is made. A reader that the window overtakes is cut off, as `ConsumerTooSlow`."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._subscribers: set[Subscriber] = set()
        self._said = Signal()
        self._moved = Signal()

    def publish(self) -> None:
        """Tell the subscribers that the stream has grown."""
        self._said.give()

    async def wait_subscribed(self, count: int = 1) -> None:
        """Wait until at least so many subscribers listen."""
        await self._moved.wait_until(lambda: len(self._listening()) >= count)

    async def wait_taken(self) -> None:
        """Wait until every subscriber that listens has taken all there is."""
        await self._moved.wait_until(lambda: self._behind() == 0)

    async def run(self, rate: float, count: int | None = None) -> None:
        """Let the world go on, `rate` messages a second, `count` of them or for ever.

        At rate 0 it goes as fast as the slowest reader takes them, and waits while there is none.
        """
        left = count
        async for due in beats(rate) if rate else turns(_AT_ONCE, self._wait_wanted):
            made = due if left is None else min(due, left)
            for _ in range(made):
                self.stream.advance()
            self.publish()
            if left is not None:
                left -= made
                if not left:
                    return

    async def feed(self, flow: Flow, ws: web.WebSocketResponse, cursor: int | None) -> None:
        """Send everything from a cursor on."""
        stream = self.stream
        if cursor is not None and cursor > stream.seq:
            await _end(flow, ws, "FutureCursor", "Cursor in the future.")
            return
        if cursor and cursor + 1 < stream.oldest_seq:
            await flow.write(_message(frames.encode_info("OutdatedCursor", _OUTDATED)))
        subscriber = Subscriber(stream.end if cursor is None else stream.position_after(cursor))
        self._subscribers.add(subscriber)
        self._moved.give()
        try:
            await self._feed(flow, ws, subscriber)
        finally:
            self._subscribers.discard(subscriber)
            self._moved.give()

    async def _feed(self, flow: Flow, ws: web.WebSocketResponse, subscriber: Subscriber) -> None:
        while True:
            await self._said.wait_until(lambda: subscriber.position < self.stream.end)
            if subscriber.position < self.stream.first:
                await _end(flow, ws, "ConsumerTooSlow", "Stream consumer too slow")
                return
            items, subscriber.position = self.stream.take(subscriber.position, _AT_ONCE)
            last = items[-1].effect if items else Effect.SEND
            sent = items[:-1] if last in (Effect.DROP, Effect.STALL) else items
            await flow.write(b"".join(chain.from_iterable(_parts(item.frame) for item in sent)))
            if last is Effect.DROP:
                flow.abort()
                return
            if last is Effect.ERROR:
                await ws.close(code=WSCloseCode.POLICY_VIOLATION)
                return
            subscriber.stalled = last is Effect.STALL
            self._moved.give()
            if subscriber.stalled:
                flow.deafen()
                await flow.wait_closed()
                return

    def _listening(self) -> list[Subscriber]:
        return [subscriber for subscriber in self._subscribers if not subscriber.stalled]

    def _behind(self) -> int:
        return max((self.stream.end - subscriber.position for subscriber in self._listening()), default=0)

    async def _wait_wanted(self) -> None:
        await self._moved.wait_until(lambda: bool(self._listening()) and self._behind() < _BEHIND_MAX)


class Replay:
    """Serves a recording to each subscriber from its beginning, or from a cursor; then it is silent.

    Without a rate it goes as fast as the reader takes it, from the file or, `in_memory`, from there.
    Raises OSError or RecordingError for a file that cannot be read.
    """

    def __init__(self, path: Path, rate: float, *, in_memory: bool = False) -> None:
        self._path = path
        self._rate = rate
        next(recording.messages(path, 1), None)  # a wrong file is to be told now, not to the first reader
        self._pieces: list[Messages] | None = None
        if in_memory and not rate:
            self._pieces = list(recording.messages(path))

    async def feed(self, flow: Flow, ws: web.WebSocketResponse, cursor: int | None) -> None:  # noqa: ARG002 - as every Firehose
        """Send the recording from a cursor on, and then nothing more."""
        if self._rate:
            await self._feed_paced(flow, cursor or 0)
        else:
            async for piece in self._unpaced(cursor or 0):
                await flow.write(piece.data)
        await flow.wait_closed()

    async def _unpaced(self, after: int) -> AsyncIterator[Messages]:
        if self._pieces is None or after:
            async for piece in _read_ahead(recording.messages(self._path, after=after)):
                yield piece
        else:
            for piece in self._pieces:
                yield piece
                await asyncio.sleep(0)  # a reader that keeps up must not starve the others

    async def _feed_paced(self, flow: Flow, after: int) -> None:
        single = recording.messages(self._path, 1, after)
        async for due in beats(self._rate):
            some = [message.data for message in islice(single, due)]
            if not some:
                return
            await flow.write(b"".join(some))


async def _read_ahead(pieces: Iterator[Messages]) -> AsyncIterator[Messages]:
    """Read one piece in a thread while the one before is sent: most of reading is decompression."""
    coming = asyncio.create_task(asyncio.to_thread(next, pieces, None))
    while (piece := await coming) is not None:
        coming = asyncio.create_task(asyncio.to_thread(next, pieces, None))
        yield piece


def _message(frame: bytes) -> bytes:
    return b"".join(_parts(frame))


def _parts(frame: bytes) -> tuple[bytes, bytes]:
    return recording.message_head(len(frame)), frame


async def _end(flow: Flow, ws: web.WebSocketResponse, name: str, message: str) -> None:
    """Send an error frame, and close as the reference PDS does."""
    await flow.write(_message(frames.encode_error(name, message)))
    await ws.close(code=WSCloseCode.POLICY_VIOLATION, message=name.encode())
