"""What an edge asks the supervisor before it does something that all processes do only so often."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.supervisor.test_channel import WITHIN_S, Peer

from jetstream.limits import SupervisorLimits, WebLimits
from jetstream.supervisor.channel import Channel, ChannelMessage
from jetstream.supervisor.siblings import Siblings
from jetstream.web.did_lists import DidLists


class Supervisor:
    """The other end. `tokens` are what there is of every rate; it has read the bodies of `uploads`."""

    def __init__(self) -> None:
        self.channel = Channel(Peer(self._answer))
        self.tokens = 0
        self.rates: list[str] = []
        self.uploads: list[bytes] = []

    async def _answer(self, question: ChannelMessage) -> ChannelMessage:
        if question.kind == "upload":
            self.uploads.append(question.body)
            return ChannelMessage("", {"status": 200, "type": "application/json"}, b"{}")
        self.rates.append(question.fields["rate"])
        self.tokens -= 1
        return ChannelMessage("", {"spent": self.tokens >= 0})


@pytest.fixture
async def supervisor() -> Supervisor:
    return Supervisor()


@pytest.fixture
async def siblings(supervisor: Supervisor) -> AsyncIterator[Siblings]:
    loop, (passing, other) = asyncio.get_running_loop(), socket.socketpair()
    siblings = Siblings(passing)
    siblings._served = cast(Any, SimpleNamespace(did_lists=DidLists(WebLimits(), lambda: 0.0)))
    ours, theirs = socket.socketpair()
    with passing, other:
        await loop.create_unix_connection(lambda: siblings.channel, sock=ours)
        await loop.create_unix_connection(lambda: supervisor.channel, sock=theirs)
        yield siblings
        supervisor.channel.abort()
        async with asyncio.timeout(WITHIN_S):
            await siblings.channel.ended.wait()


async def test_an_upload_is_not_sent_without_a_token(siblings: Siblings, supervisor: Supervisor) -> None:
    supervisor.tokens = 1
    answers = [await siblings._upload(b"did:plc:a") for _ in range(3)]
    assert [each.status for each in answers] == [200, 429, 429]
    assert answers[1] == DidLists(WebLimits(), lambda: 0.0).too_many()  # as by one process
    assert supervisor.uploads == [b"did:plc:a"]
    assert supervisor.rates == ["did_lists_read"] * 3


async def test_each_rate_is_asked_for_by_its_name(siblings: Siblings, supervisor: Supervisor) -> None:
    supervisor.tokens = 1
    allowed = siblings.allowance("gap_pages")
    assert [await allowed(), await allowed()] == [True, False]
    assert supervisor.rates == ["gap_pages"] * 2


async def test_without_an_answer_nothing_is_allowed(siblings: Siblings, supervisor: Supervisor) -> None:
    siblings.limits = SupervisorLimits(answer_s=0.01)
    assert supervisor.channel._transport is not None
    supervisor.channel._transport.pause_reading()
    assert not await siblings.allowance("explanations")()
