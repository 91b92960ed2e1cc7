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
from jetstream.simulator.pacing import Signal, at_rate
from jetstream.simulator.recording import Messages
from jetstream.simulator.stream import Stream

_AT_ONCE: Final = 200  # items in one write: about 700 kB
_OUTDATED: Final = "Requested cursor exceeded limit. Possibly missing events"


class Firehose(Protocol):
    """What serves a subscription."""

    @property
    def out(self) -> bool:
        """Whether no connection is accepted at present."""
        ...

    async def feed(self, flow: FlowControl, ws: web.WebSocketResponse, cursor: int | None) -> None:
        """Send everything after a cursor. Return when this side has ended the connection.

        Raises ConnectionResetError when the other side has.
        """
        ...


class Subscriber:
    """One subscriber: a position in the stream."""

    def __init__(self, position: int, flow: FlowControl) -> None:
        self.position = position  # of the next item to send
        self.flow = flow  # its connection
        self.stalled = False  # whether the fault `stall` has silenced it


class LiveFirehose:
    """Serves a stream while it grows. A subscriber that the window overtakes gets `ConsumerTooSlow`.

    Frames are sent `lag_s` seconds after they are published. `moved` is notified when a subscriber comes,
    goes or is written to; several firehoses may share it.
    """

    def __init__(self, stream: Stream, *, lag_s: float = 0, moved: Signal | None = None) -> None:
        self.stream = stream
        self.out = False  # whether the host is out: it has no connections, and accepts none
        self._lag_s = lag_s
        # With a lag: the position after the newest item that may be sent, and the number there.
        self._shown, self._shown_seq = stream.end, stream.seq
        self._subscribers: set[Subscriber] = set()
        self._grown = Signal()  # there are new items that may be sent
        self._moved = Signal() if moved is None else moved

    def publish(self) -> None:
        """Notify the subscribers that the stream has grown, at once or after the lag."""
        if self._lag_s and self._subscribers:
            loop = asyncio.get_running_loop()
            loop.call_later(self._lag_s, self._show, self.stream.end, self.stream.seq)
        else:  # without subscribers nobody sees a lag
            self._show(self.stream.end, self.stream.seq)

    def set_out(self, out: bool) -> None:
        """Begin or end an outage. When one begins, all connections end without a close frame."""
        if out and not self.out:
            for subscriber in self._subscribers:
                subscriber.flow.abort()
        self.out = out

    async def wait_subscribed(self, count: int = 1) -> None:
        """Wait until there are at least `count` subscribers."""
        await self._moved.wait_until(lambda: self.active() >= count)

    async def wait_written(self) -> None:
        """Wait until everything published has been written to every subscriber."""
        await self._moved.wait_until(lambda: self.behind() == 0)

    def active(self) -> int:
        """Return the number of subscribers that are not silenced."""
        return sum(not subscriber.stalled for subscriber in self._subscribers)

    def behind(self) -> int:
        """Return how many items the slowest of these is behind."""
        positions = (each.position for each in self._subscribers if not each.stalled)
        return self.stream.end - min(positions, default=self.stream.end)

    def _end(self) -> int:
        """Return the position after the newest item that may be sent."""
        return self._shown if self._lag_s else self.stream.end

    def _show(self, position: int, seq: int) -> None:
        self._shown, self._shown_seq = max(self._shown, position), max(self._shown_seq, seq)
        self._grown.notify()

    async def feed(self, flow: FlowControl, ws: web.WebSocketResponse, cursor: int | None) -> None:
        """Send everything after a cursor."""
        stream = self.stream
        if cursor is not None and cursor > self._newest_seq():
            await _close(flow, ws, "FutureCursor", "Cursor in the future.")
            return
        if cursor and cursor + 1 < stream.oldest_seq:
            await flow.write(_message(frames.encode_info("OutdatedCursor", _OUTDATED)))
        subscriber = Subscriber(self._end() if cursor is None else stream.position_after(cursor), flow)
        self._subscribers.add(subscriber)
        self._moved.notify()
        try:
            await self._feed(flow, ws, subscriber)
        finally:
            self._subscribers.discard(subscriber)
            self._moved.notify()

    async def _feed(self, flow: FlowControl, ws: web.WebSocketResponse, subscriber: Subscriber) -> None:
        while True:
            await self._grown.wait_until(lambda: subscriber.position < self._end())
            if subscriber.position < self.stream.first:
                await _close(flow, ws, "ConsumerTooSlow", "Stream consumer too slow")
                return
            count = min(_AT_ONCE, self._end() - subscriber.position)
            items, subscriber.position = self.stream.take(subscriber.position, count)
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

    def _newest_seq(self) -> int:
        """Return the number of the newest frame that may be sent."""
        return self._shown_seq if self._lag_s else self.stream.seq


class Replay:
    """Serves a recording to each subscriber, from its beginning or a cursor. Then it is silent.

    `rate` is in frames a second; 0: as fast as the subscriber reads. With `in_memory`, and without a rate,
    the recording is read into memory first. Raises OSError or RecordingError for a file that cannot be read.
    """

    def __init__(self, path: Path, rate: float, *, in_memory: bool = False) -> None:
        self.out = False  # a recording has no outages
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


async def _close(flow: FlowControl, ws: web.WebSocketResponse, name: str, message: str) -> None:
    """Send an error frame, and close as the reference PDS does."""
    await flow.write(_message(frames.encode_error(name, message)))
    await ws.close(code=WSCloseCode.POLICY_VIOLATION, message=name.encode())
