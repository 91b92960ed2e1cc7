"""Serve subscriptions to the firehose: of a world, or of a recording.

Source: the event stream page of the AT Protocol specification; the reference PDS for the texts of errors.
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
from jetstream.simulator.flow_control import FlowControl
from jetstream.simulator.pacing import Signal, at_rate, on_demand
from jetstream.simulator.recording import Messages
from jetstream.simulator.stream import Stream

_AT_ONCE: Final = 200  # items in one write: about 700 kB
_BEHIND_MAX: Final = 1000  # at rate 0, the world waits for a subscriber that is further behind
_OUTDATED: Final = "Requested cursor exceeded limit. Possibly missing events"


class Firehose(Protocol):
    """What serves a subscription."""

    async def feed(self, flow: FlowControl, ws: web.WebSocketResponse, cursor: int | None) -> None:
        """Send everything after a cursor. Return when this side has ended the connection.

        Raises ConnectionResetError when the other side has.
        """
        ...


class Subscriber:
    """One subscriber: a position in the stream."""

    def __init__(self, position: int) -> None:
        self.position = position  # of the next item to send
        self.stalled = False  # whether the fault `stall` has silenced it


class LiveFirehose:
    """Serves a stream while it grows. A subscriber that the window overtakes gets `ConsumerTooSlow`."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._subscribers: set[Subscriber] = set()
        self._grown = Signal()  # the stream has new items
        self._moved = Signal()  # a subscriber came, went or was written to

    def publish(self) -> None:
        """Notify the subscribers that the stream has grown."""
        self._grown.notify()

    async def wait_subscribed(self, count: int = 1) -> None:
        """Wait until there are at least `count` subscribers."""
        await self._moved.wait_until(lambda: len(self._active()) >= count)

    async def wait_written(self) -> None:
        """Wait until everything has been written to every subscriber."""
        await self._moved.wait_until(lambda: self._behind() == 0)

    async def run(self, rate: float, count: int | None = None) -> None:
        """Let the world make messages, `rate` a second, `count` of them or without end.

        At rate 0 it makes them as fast as the slowest subscriber reads, and waits while there is none.
        """
        left = count
        async for due in at_rate(rate) if rate else on_demand(_AT_ONCE, self._wait_wanted):
            made = due if left is None else min(due, left)
            for _ in range(made):
                self.stream.advance()
            self.publish()
            if left is not None:
                left -= made
                if not left:
                    return

    async def feed(self, flow: FlowControl, ws: web.WebSocketResponse, cursor: int | None) -> None:
        """Send everything after a cursor."""
        stream = self.stream
        if cursor is not None and cursor > stream.seq:
            await _end(flow, ws, "FutureCursor", "Cursor in the future.")
            return
        if cursor and cursor + 1 < stream.oldest_seq:
            await flow.write(_message(frames.encode_info("OutdatedCursor", _OUTDATED)))
        subscriber = Subscriber(stream.end if cursor is None else stream.position_after(cursor))
        self._subscribers.add(subscriber)
        self._moved.notify()
        try:
            await self._feed(flow, ws, subscriber)
        finally:
            self._subscribers.discard(subscriber)
            self._moved.notify()

    async def _feed(self, flow: FlowControl, ws: web.WebSocketResponse, subscriber: Subscriber) -> None:
        while True:
            await self._grown.wait_until(lambda: subscriber.position < self.stream.end)
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
            self._moved.notify()
            if subscriber.stalled:
                flow.ignore_input()
                await flow.wait_closed()
                return

    def _active(self) -> list[Subscriber]:
        return [subscriber for subscriber in self._subscribers if not subscriber.stalled]

    def _behind(self) -> int:
        return max((self.stream.end - subscriber.position for subscriber in self._active()), default=0)

    async def _wait_wanted(self) -> None:
        await self._moved.wait_until(lambda: bool(self._active()) and self._behind() < _BEHIND_MAX)


class Replay:
    """Serves a recording to each subscriber, from its beginning or a cursor. Then it is silent.

    `rate` is in frames a second; 0: as fast as the subscriber reads. With `in_memory`, and without a rate,
    the recording is read into memory first. Raises OSError or RecordingError for a file that cannot be read.
    """

    def __init__(self, path: Path, rate: float, *, in_memory: bool = False) -> None:
        self._path = path
        self._rate = rate
        next(recording.messages(path, 1), None)  # report a wrong file now, not to the first subscriber
        self._pieces: list[Messages] | None = None  # the whole recording, if it is in memory
        if in_memory and not rate:
            self._pieces = list(recording.messages(path))

    async def feed(self, flow: FlowControl, ws: web.WebSocketResponse, cursor: int | None) -> None:  # noqa: ARG002 - part of the interface
        """Send the recording after a cursor, and then nothing."""
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
                await asyncio.sleep(0)  # a fast subscriber must not starve the others

    async def _feed_paced(self, flow: FlowControl, after: int) -> None:
        single = recording.messages(self._path, 1, after)
        async for due in at_rate(self._rate):
            some = [message.data for message in islice(single, due)]
            if not some:
                return
            await flow.write(b"".join(some))


async def _read_ahead(pieces: Iterator[Messages]) -> AsyncIterator[Messages]:
    """Read the next piece in a thread while one is sent: most of the time goes into decompression."""
    reading = asyncio.create_task(asyncio.to_thread(next, pieces, None))
    while (piece := await reading) is not None:
        reading = asyncio.create_task(asyncio.to_thread(next, pieces, None))
        yield piece


def _message(frame: bytes) -> bytes:
    return b"".join(_parts(frame))


def _parts(frame: bytes) -> tuple[bytes, bytes]:
    return recording.message_head(len(frame)), frame


async def _end(flow: FlowControl, ws: web.WebSocketResponse, name: str, message: str) -> None:
    """Send an error frame, and close as the reference PDS does."""
    await flow.write(_message(frames.encode_error(name, message)))
    await ws.close(code=WSCloseCode.POLICY_VIOLATION, message=name.encode())
