"""The socket of one event stream: `Outbound`, and nothing in. The body may be compressed.

Compressing takes ten times as long as writing, and cannot be shared. So delivery only leaves its bytes in a
`CompressedSink`, and one worker compresses them, some pieces of a connection after some of another:

    delivery ──▶ waiting ──▶ the worker of all compressed streams ──▶ write buffer ──▶ socket

However much there is to compress, the worker leaves the event loop to others for half of the time. A reader
that it cannot keep up with is a slow one: what waits counts as a part of its write buffer.

A body that is not compressed needs none of that: `EventStreamSink` writes as a WebSocket does.

How it ends: a close with 1000, 1001 or 1012 completes the body, with the trailer of the compressor and the
last chunk. After any other close these are missing, so that the client's library reports an error (RFC
9112, section 8).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from jetstream.delivery.framing import Framing
from jetstream.delivery.framing.chunked import COMPLETE, LAST_CHUNK, chunk
from jetstream.delivery.subscriber import Close
from jetstream.scheduling import Worker
from jetstream.steps import Steps
from jetstream.web.content_coding import Compressor
from jetstream.web.outbound import Outbound, Sockets

# Bytes that are compressed at once, which takes 0.1 to 0.3 ms. A client can read each piece when it has it.
PIECE_BYTES: Final = 16 << 10
# Pieces of one connection that a job compresses. Then the worker runs the jobs of other connections.
PIECES_PER_JOB: Final = 4
_FLOOD: Final = Close(1008, "flood", "flood: nothing may follow the request: send no more")


class EventStreamSink(Outbound):
    """The socket of one event stream. `ended` is called when the connection has gone.

    `framing` makes the frames that delivery writes, and the text at the end.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        sockets: Sockets,
        peer: str,
        framing: Framing,
        ended: Callable[[], None],
    ) -> None:
        super().__init__(transport, sockets, peer)
        # For the end of the body only: delivery makes the frames.
        self._framing = framing
        # Called once, with the end of the connection.
        self._ended = ended
        # Whether the client has closed its side. A client that still reads keeps it open.
        self._eof = False

    def _end(self, close: Close) -> None:
        """Write the end of the body. What is not complete has none."""
        self._write_control(self._framing.end(close.code, close.text, self.owner.resume_at()))
        self._write_eof()

    @property
    def _left(self) -> bool:
        """Tell whether the client has closed its side of the connection."""
        return self._eof

    def data_received(self, data: bytes) -> None:
        """Discard what the client sends, up to a limit. Called by the event loop.

        One that sends `lingering_bytes_max` bytes is closed with `flood`.
        """
        self._discard_input(data)
        if self._discarded >= self._sockets.limits.lingering_bytes_max:
            self.close(_FLOOD)

    def eof_received(self) -> None:
        """End the connection: a client that closes its side does not read any more."""
        self._eof = True
        super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """Stop everything. Called by the event loop.

        `ended` is called first, so that another stream may have the compressor.
        """
        self._ended()
        super().connection_lost(error)


class Compression(NamedTuple):
    """How one body is compressed.

    `worker` is the one of `EventStreamDialect`.
    """

    compressor: Compressor
    chunked: bool  # whether each piece becomes a chunk
    worker: Worker  # of all compressed streams


class CompressedSink(EventStreamSink):
    """The socket of an event stream whose body is compressed. `framing` makes no chunks."""

    def __init__(
        self,
        transport: asyncio.Transport,
        sockets: Sockets,
        peer: str,
        framing: Framing,
        ended: Callable[[], None],
        compression: Compression,
    ) -> None:
        # What delivery has written and is not compressed: views of its bytes, which are shared with other
        # streams. Then how many bytes these are, up to the limit of the write buffer and one write more.
        # write buffer.
        self._waiting = deque[memoryview]()
        self._waiting_bytes = 0
        # Whether the write buffer is full, or has to be empty first. Nothing is compressed until then.
        self._clogged = False
        # Whether a job of this connection is in the worker.
        self._working = False
        # Whether the end of the body is written.
        self._over = False
        super().__init__(transport, sockets, peer, framing, ended)
        # Its compressor has the history of this body: pieces must pass through it in order, each once.
        self._compression = compression
        # Never the transport's own. `close` replaces it with a no-op.
        self.write = self._put

    @property
    def buffered(self) -> int:
        """How many bytes wait, to be compressed or in the write buffer.

        Bytes before compression and bytes after it are added up. So the sum is an upper bound of what the
        client has still to receive.
        """
        return super().buffered + self._waiting_bytes

    def _start_gathering(self) -> None:
        """Compress nothing until the transport has sent what it has. What is written waits here anyway.

        The transport calls `resume_writing` once it is empty, which ends it.
        """
        if super().buffered:
            self._gathering = True
            self._set_limits()  # which calls `pause_writing`

    def pause_writing(self) -> None:
        """Compress no more: the write buffer is full. Called by the event loop."""
        self._clogged = True
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on: the write buffer has drained. Called by the event loop."""
        self._clogged = False
        if self._gathering:
            self._gathering = False
            self._set_limits()
        self._note_drained()
        self._work()

    def _note_drained(self) -> None:
        """Wake who waits for `writable`, if enough has gone.

        That is when the write buffer has room and at most a quarter of the limit waits to be compressed.
        """
        if self.full and not self._clogged and self._waiting_bytes <= self._limit // 4:
            super().resume_writing()

    def _put(self, data: bytes) -> None:
        """Take what delivery writes.

        Called by delivery in place of `write`. It never blocks: above the limit, `full` tells delivery to
        stop.
        """
        self._waiting.append(memoryview(data))
        self._waiting_bytes += len(data)
        if self._waiting_bytes > self._limit:
            self.full = True
        self._work()

    def _work(self) -> None:
        """Ask the worker for a turn, unless there is nothing to do.

        At most one job of a connection is in the worker.
        """
        if not self._working and not self._clogged and (self._waiting or (self._close and not self._over)):
            self._working = True
            self._compression.worker.put(self._compress())

    def _compress(self) -> Steps[None]:
        """Compress some pieces in steps, or end the body. Then ask for another turn.

        A job has `PIECES_PER_JOB` pieces. After that the other connections have their turn.
        """
        for _ in range(PIECES_PER_JOB):
            if self._lost or self._clogged or not self._waiting:
                break
            self._compress_piece()
            yield
        self._working = False
        if self._close is not None and not self._waiting:
            self._write_end(self._close)
        self._work()

    def _compress_piece(self) -> None:
        """Compress and write the next bytes. Progress of the socket is judged by what leaves the buffer.

        `written` counts bytes before compression, `controls` is corrected by the difference: the sum of
        both less `buffered` is what has left the socket.
        """
        piece = self._take(PIECE_BYTES)
        sent = self._compression.compressor.write(piece)
        self._waiting_bytes -= len(piece)
        self.controls -= len(piece)
        self._send(sent)
        self._note_drained()

    def _take(self, most: int) -> bytes:
        """Take so many of the bytes that wait, or all.

        The views are joined: the compressor works on at most `PIECE_BYTES` bytes at once.
        """
        taken = []
        while self._waiting and most:
            first = self._waiting.popleft()
            if len(first) > most:
                self._waiting.appendleft(first[most:])
                first = first[:most]
            taken.append(first)
            most -= len(first)
        return b"".join(taken)

    def _send(self, data: bytes) -> None:
        """Write compressed bytes."""
        self._write_control(chunk(data) if self._compression.chunked else data)

    def _end(self, close: Close) -> None:
        """Let the end of the body wait behind what waits.

        It may be empty: lines of JSON have no words at their end.
        """
        text = self._framing.end(close.code, close.text, self.owner.resume_at())
        if text:
            self.controls += len(text)
            self._put(text)
        self._work()

    def _write_end(self, close: Close) -> None:
        """Write the end of the body, once nothing waits any more.

        Later calls do nothing.
        """
        if self._over:
            return
        self._over = True
        if close.code in COMPLETE:
            self._send(self._compression.compressor.end())
            if self._compression.chunked:
                self._write_control(LAST_CHUNK)
        self._write_eof()

    def connection_lost(self, error: Exception | None) -> None:
        """Stop everything. Called by the event loop."""
        self._waiting.clear()
        self._waiting_bytes = 0
        self._over = True
        super().connection_lost(error)
