from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.event_streams import decoder
from tests.unit.web.transport import Owner

from jetstream.delivery.framing.ndjson import NDJSON
from jetstream.delivery.framing.sse import SSE
from jetstream.delivery.subscriber import Close
from jetstream.limits import WebLimits
from jetstream.scheduling import Worker
from jetstream.web.content_coding import COMPRESSORS
from jetstream.web.outbound import Sockets
from jetstream.web.stream_sink import PIECE_BYTES, CompressedSink, Compression

BUFFER_BYTES = 100_000
DONE = Close(1000, "done", "done")
SLOW = Close(1008, "slow", "slow")
LAST_CHUNK = b"0\r\n\r\n"


class FakeTransport:
    """A write buffer that drains when it is told to."""

    def __init__(self) -> None:
        self.protocol: asyncio.Protocol | None = None
        self.waiting = 0
        self.writes: list[bytes] = []
        self.high = self.low = 0
        self.eof = self.aborted = self.paused = False
        self.on_write: Callable[[], None] = lambda: None

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes) -> None:
        assert not self.eof
        self.on_write()
        self.writes.append(data)
        self.waiting += len(data)
        self._check()

    def _check(self) -> None:
        if self.waiting > self.high and not self.paused:
            assert self.protocol is not None
            self.paused = True
            self.protocol.pause_writing()

    def drain(self) -> None:
        self.waiting = 0
        if self.paused:
            assert self.protocol is not None
            self.paused = False
            self.protocol.resume_writing()

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        self.high, self.low = high, low
        self._check()

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def get_extra_info(self, _name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return self.aborted

    def write_eof(self) -> None:
        self.eof = True

    def abort(self) -> None:
        self.aborted = True


class Stream:
    """A compressed stream whose socket is not one."""

    def __init__(
        self, coding: str = "gzip", *, chunked: bool = False, sse: bool = False, worker: Worker | None = None
    ) -> None:
        self.transport = FakeTransport()
        self.ended = 0
        self.sink = CompressedSink(
            cast(asyncio.Transport, self.transport),
            Sockets(BUFFER_BYTES, WebLimits(close_timeout_s=600)),
            "192.0.2.1",
            SSE if sse else NDJSON,
            self._count,
            Compression(COMPRESSORS[coding](), chunked, Worker() if worker is None else worker),
        )
        self.transport.protocol = self.sink
        self.sink.owner = Owner()

    def _count(self) -> None:
        self.ended += 1

    def put(self, data: bytes) -> None:
        """Write as delivery does."""
        self.sink.written += len(data)
        self.sink.write(data)

    @property
    def body(self) -> bytes:
        """All that was sent, one chunk after another if there are chunks."""
        return b"".join(self.transport.writes)

    @property
    def progress(self) -> int:
        """By what delivery tells a reader that is stalled."""
        return self.sink.written + self.sink.controls - self.sink.buffered


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - turn by turn
            await asyncio.sleep(0)


def noise(size: int) -> bytes:
    return Random(size).randbytes(size)


@pytest.mark.parametrize("coding", COMPRESSORS)
@given(sizes=st.lists(st.integers(0, 60_000), max_size=12), drains=st.lists(st.booleans(), max_size=12))
def test_a_client_reads_what_was_written_whatever_the_socket_takes(
    coding: str, sizes: list[int], drains: list[bool]
) -> None:
    async def play() -> None:
        stream, sent = Stream(coding), b""
        for at, size in enumerate(sizes):
            data = noise(size)
            sent += data
            stream.put(data)
            if at < len(drains) and drains[at]:
                await asyncio.sleep(0)
                stream.transport.drain()
            elif at % 2:
                stream.sink.gather()
                await asyncio.sleep(0)
        stream.sink.close(DONE)
        while not stream.transport.eof:
            await asyncio.sleep(0)
            stream.transport.drain()
        assert decoder(coding)(stream.body) == sent
        assert stream.sink.buffered == 0
        stream.sink.connection_lost(None)

    asyncio.run(play())


async def test_all_that_was_written_can_be_read_when_the_worker_has_had_its_turn() -> None:
    stream, read = Stream(), decoder("gzip")
    for text in (b"one\n", b"two\n", b"three\n"):
        stream.put(text)
        await until(lambda: stream.transport.writes)
        assert read(stream.transport.writes.pop()) == text


async def test_a_large_write_is_compressed_in_pieces_and_others_have_turns_between() -> None:
    worker, order = Worker(), list[str]()
    large, small = Stream(worker=worker), Stream(worker=worker)
    large.transport.on_write = lambda: order.append("large")
    small.transport.on_write = lambda: order.append("small")
    large.put(noise(6 * PIECE_BYTES))
    small.put(b"{}\n")
    await until(lambda: len(order) == 7)
    assert order == ["large"] * 4 + ["small"] + ["large"] * 2
    assert max(map(len, large.transport.writes)) < PIECE_BYTES * 1.1


async def test_what_waits_is_a_part_of_the_buffer() -> None:
    stream = Stream()
    stream.put(noise(BUFFER_BYTES))
    assert (stream.sink.full, stream.sink.buffered) == (False, BUFFER_BYTES)
    stream.put(b"x")
    assert (stream.sink.full, stream.sink.buffered) == (True, BUFFER_BYTES + 1)
    assert not stream.transport.writes
    waiting = asyncio.create_task(stream.sink.writable())
    while not waiting.done():
        await asyncio.sleep(0)
        stream.transport.drain()
    assert (stream.sink.full, stream.sink.buffered <= BUFFER_BYTES // 4) == (False, True)


@pytest.mark.parametrize("gathering", [False, True])
async def test_drained_is_when_all_is_compressed_and_sent(gathering: bool) -> None:
    stream = Stream()
    stream.put(noise(50_000))
    if gathering:
        await until(lambda: stream.transport.writes)
        for _ in range(2):
            stream.sink.gather()
    waiting = asyncio.create_task(stream.sink.drained())
    while not waiting.done():
        await until(lambda: waiting.done() or stream.transport.paused)
        assert waiting.done() == (stream.sink.buffered == 0)
        stream.transport.drain()
    assert len(decoder("gzip")(stream.body)) == 50_000


async def test_nothing_is_compressed_while_the_socket_takes_nothing() -> None:
    stream = Stream()
    stream.sink.lower_limit(True)
    stream.put(noise(50_000))
    await until(lambda: stream.transport.paused)
    stalled = stream.progress
    writes = len(stream.transport.writes)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(stream.transport.writes) == writes < 4
    assert stream.progress == stalled
    stream.transport.drain()
    assert stream.progress > stalled


async def test_for_a_slow_client_nothing_is_compressed_until_it_has_read_all() -> None:
    stream, sent = Stream(), b""
    for number in range(20):
        sent += (line := b"%d\n" % number)
        stream.put(line)
        for _ in range(3):
            await asyncio.sleep(0)
        stream.sink.gather()
    assert len(stream.transport.writes) < 5
    assert not stream.sink.full
    stream.transport.drain()
    await until(lambda: decoder("gzip")(stream.body) == sent)
    assert stream.transport.high == BUFFER_BYTES


@pytest.mark.parametrize(("close", "complete"), [(DONE, True), (SLOW, False)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_the_end_comes_behind_what_waits(close: Close, complete: bool, chunked: bool) -> None:
    stream = Stream(chunked=chunked, sse=True)
    stream.put(b"data: {}\n\n")
    stream.sink.close(close)
    stream.put(b"too late")
    assert stream.sink.closing
    await until(lambda: stream.transport.eof)
    assert stream.body.endswith(LAST_CHUNK) == (complete and chunked)
    if not chunked:
        end = b'event: close\ndata: {"code":%d,"reason":"%b; cursor=7"}\n\n'
        expected = b"data: {}\n\n" + end % (close.code, close.text.encode())
        assert decoder("gzip")(stream.body) == expected
    assert stream.sink.ended == close
    stream.sink.connection_lost(None)
    assert stream.ended == 1


async def test_an_end_without_anything_before_it_is_one() -> None:
    stream = Stream(chunked=True)
    stream.sink.close(DONE)
    await until(lambda: stream.transport.eof)
    assert stream.body.endswith(LAST_CHUNK)
    stream.sink.connection_lost(None)


async def test_a_connection_that_is_lost_has_nothing_more_to_do() -> None:
    worker = Worker()
    stream = Stream(worker=worker)
    stream.put(noise(200_000))
    waiting = asyncio.create_task(stream.sink.writable())
    await asyncio.sleep(0)
    stream.transport.abort()
    stream.sink.connection_lost(None)
    with pytest.raises(ConnectionError):
        await waiting
    await until(lambda: not len(worker))
    assert (stream.sink.buffered, stream.ended, stream.sink.ended.label) == (0, 1, "lost")
    stream.put(b"x")
    assert stream.sink.buffered == 0
