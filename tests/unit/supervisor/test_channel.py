from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from jetstream.limits import SupervisorLimits
from jetstream.supervisor.channel import Channel, ChannelError, ChannelMessage

WITHIN_S = 10.0


class Peer:
    """Keeps what it is told, and answers as a test says."""

    def __init__(self, answer: Callable[[ChannelMessage], Awaitable[ChannelMessage]] | None = None) -> None:
        self.heard: asyncio.Queue[ChannelMessage] = asyncio.Queue()
        self._answer = answer

    def told(self, message: ChannelMessage) -> None:
        self.heard.put_nowait(message)

    async def asked(self, message: ChannelMessage) -> ChannelMessage:
        assert self._answer is not None
        return await self._answer(message)

    def lost(self) -> None:
        self.heard.put_nowait(ChannelMessage("lost"))


def _same(channel: Channel) -> Channel:
    return channel


@asynccontextmanager
async def pair(
    ours: Peer, theirs: Peer, limits: SupervisorLimits = SupervisorLimits()
) -> AsyncIterator[tuple[Channel, Channel]]:
    """Both ends of a channel, on real sockets."""
    loop = asyncio.get_running_loop()
    channels = Channel(ours, limits), Channel(theirs, limits)
    for channel, sock in zip(channels, socket.socketpair(), strict=True):
        await loop.create_unix_connection(partial(_same, channel), sock=sock)
    try:
        yield channels
    finally:
        for channel in channels:
            channel.abort()
        await asyncio.gather(*(channel.ended.wait() for channel in channels))


async def test_what_is_told_arrives_in_order_with_its_fields_and_bytes() -> None:
    peer = Peer()
    async with pair(Peer(), peer) as (ours, _):
        for number in range(100):
            ours.tell("count", {"number": number}, bytes(number))
        heard = [await peer.heard.get() for _ in range(100)]
    assert heard == [ChannelMessage("count", {"number": number}, bytes(number)) for number in range(100)]


async def test_each_question_gets_its_own_answer_in_whatever_order_they_come() -> None:
    first_may_end = asyncio.Event()

    async def answer(question: ChannelMessage) -> ChannelMessage:
        if question.body == b"first":
            await first_may_end.wait()
        return ChannelMessage("", {"of": question.fields["n"]}, question.body.upper())

    async with pair(Peer(), Peer(answer)) as (ours, _):
        first = asyncio.create_task(ours.ask("q", {"n": 1}, b"first", within_s=WITHIN_S))
        second = await ours.ask("q", {"n": 2}, b"second", within_s=WITHIN_S)
        first_may_end.set()
        assert (second.fields, second.body) == ({"of": 2}, b"SECOND")
        assert ((await first).fields, (await first).body) == ({"of": 1}, b"FIRST")


async def test_a_question_is_given_up_after_a_while() -> None:
    async def never(_question: ChannelMessage) -> ChannelMessage:
        await asyncio.Event().wait()
        raise AssertionError

    async with pair(Peer(), Peer(never)) as (ours, _):
        with pytest.raises(ChannelError, match=r"no answer within 0\.01 s"):
            await ours.ask("q", within_s=0.01)


async def test_when_the_other_end_has_ended_questions_fail_and_telling_does_nothing() -> None:
    async def never(_question: ChannelMessage) -> ChannelMessage:
        await asyncio.Event().wait()
        raise AssertionError

    peer = Peer()
    async with pair(peer, Peer(never)) as (ours, theirs):
        asked = asyncio.create_task(ours.ask("q", within_s=WITHIN_S))
        await asyncio.sleep(0)
        theirs.abort()
        with pytest.raises(ChannelError, match="has ended"):
            await asked
        assert await peer.heard.get() == ChannelMessage("lost")
        ours.tell("more")
        with pytest.raises(ChannelError, match="has ended"):
            await ours.ask("q", within_s=WITHIN_S)


async def test_closing_sends_what_was_told_before() -> None:
    peer = Peer()
    async with pair(Peer(), peer) as (ours, _):
        ours.tell("last", body=bytes(1 << 20))
        await ours.close()
        assert len((await peer.heard.get()).body) == 1 << 20
        assert await peer.heard.get() == ChannelMessage("lost")


async def test_a_message_that_is_too_long_ends_the_channel() -> None:
    peer = Peer()
    async with pair(Peer(), peer, SupervisorLimits(message_bytes_max=1_000)) as (ours, _):
        ours.tell("large", body=bytes(2_000))
        assert await peer.heard.get() == ChannelMessage("lost")


async def test_a_peer_that_reads_nothing_is_given_up() -> None:
    peer, limits = Peer(), SupervisorLimits(unsent_bytes_max=1 << 20)
    loop = asyncio.get_running_loop()
    sock, silent = socket.socketpair()
    with silent:
        channel = Channel(peer, limits)
        await loop.create_unix_connection(lambda: channel, sock=sock)
        for _ in range(4):
            channel.tell("much", body=bytes(1 << 20))
        assert await peer.heard.get() == ChannelMessage("lost")


async def test_only_so_many_questions_wait() -> None:
    async def never(_question: ChannelMessage) -> ChannelMessage:
        await asyncio.Event().wait()
        raise AssertionError

    async with pair(Peer(), Peer(never), SupervisorLimits(questions_max=2)) as (ours, _):
        asked = [asyncio.create_task(ours.ask("q", within_s=WITHIN_S)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ChannelError, match="too many"):
            await ours.ask("q", within_s=WITHIN_S)
        for each in asked:
            each.cancel()
        await asyncio.wait(asked)


@given(
    st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=40)), max_size=9),
    st.lists(st.integers(1, 30), min_size=1, max_size=30),
)
async def test_how_the_bytes_are_cut_does_not_matter(
    parts: list[tuple[str, bytes]], sizes: list[int]
) -> None:
    peer = Peer()
    channel = Channel(peer)
    sent = [ChannelMessage(kind, {"kind": kind}, body) for kind, body in parts if kind != "answer"]
    data, at = b"".join(each.encode() for each in sent), 0
    while at < len(data):
        size = sizes[at % len(sizes)]
        channel.data_received(data[at : at + size])
        at += size
    assert [peer.heard.get_nowait() for _ in sent] == sent
    assert peer.heard.empty()


async def test_while_much_waits_to_be_sent_questions_are_refused_and_the_channel_stays() -> None:
    peer, limits = Peer(), SupervisorLimits(unsent_bytes_max=4 << 20)
    loop = asyncio.get_running_loop()
    sock, slow = socket.socketpair()
    with slow:
        channel = Channel(peer, limits)
        await loop.create_unix_connection(lambda: channel, sock=sock)
        channel.tell("much", body=bytes(3 << 20))
        for _ in range(10):
            with pytest.raises(ChannelError, match="too much waits"):
                await channel.ask("q", body=bytes(1 << 20), within_s=WITHIN_S)
        channel.tell("more")
        assert not channel.ended.is_set()
        assert peer.heard.empty()
        channel.abort()
        await channel.ended.wait()


async def test_while_much_waits_to_be_sent_there_are_no_answers_and_the_channel_stays() -> None:
    async def answer(_question: ChannelMessage) -> ChannelMessage:
        return ChannelMessage("", body=bytes(1 << 20))

    limits = SupervisorLimits(unsent_bytes_max=4 << 20)
    async with pair(Peer(), Peer(answer), limits) as (ours, theirs):
        ours_transport = ours._transport
        assert ours_transport is not None
        ours_transport.pause_reading()
        asked = [asyncio.create_task(ours.ask("q", within_s=WITHIN_S)) for _ in range(20)]
        while not theirs.ended.is_set() and (theirs._answering or not theirs._is_full):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0)
        ours_transport.resume_reading()
        found = await asyncio.gather(*asked, return_exceptions=True)
        refused = [str(each) for each in found if isinstance(each, ChannelError)]
        assert 0 < len(refused) < 20
        assert set(refused) == {"too much waits to be sent"}
        assert len((await ours.ask("q", within_s=WITHIN_S)).body) == 1 << 20


async def test_a_question_that_cannot_be_answered_is_logged_and_the_asker_is_told() -> None:
    async def fail(_question: ChannelMessage) -> ChannelMessage:
        raise ValueError("wrong")

    async with pair(Peer(), Peer(fail)) as (ours, _):
        with capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(ChannelError, match="its log says why"):
                    await ours.ask("q", within_s=WITHIN_S)
    assert [line["question"] for line in logs] == ["q"]  # clients may cause it again and again


async def test_more_questions_than_are_answered_at_once_are_refused() -> None:
    first_may_end = asyncio.Event()

    async def answer(_question: ChannelMessage) -> ChannelMessage:
        await first_may_end.wait()
        return ChannelMessage("")

    limits = SupervisorLimits(questions_max=1)
    async with pair(Peer(), Peer(answer), limits) as (ours, theirs):
        first = asyncio.create_task(ours.ask("q", within_s=WITHIN_S))
        while not theirs._answering:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
        ours._limits = SupervisorLimits()
        with pytest.raises(ChannelError, match="too many questions"):
            await ours.ask("q", within_s=WITHIN_S)
        first_may_end.set()
        await first
