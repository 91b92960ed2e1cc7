"""What clients have begun and not finished, and what they send after the last answer; without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from unittest.mock import Mock

import pytest

from jetstream.limits import WebLimits
from jetstream.web.pending import LingeringClose, Pending

LIMITS = WebLimits(pending_bytes_max=100)


class Peers(Pending[str]):
    """What is pending at a time that is set, and who was expired or dropped. Nothing is checked by itself."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.expired: list[str] = []
        self.dropped: list[str] = []
        super().__init__(10.0, self._expire_one, self.dropped.append, LIMITS, lambda: self.now_s)

    def _expire_one(self, owner: str) -> None:
        self.expired.append(owner)
        self.remove(owner)

    def expired_at(self, now_s: float) -> list[str]:
        self.now_s = now_s
        self._check()
        return self.expired


@pytest.fixture
async def pending() -> Peers:
    return Peers()


async def test_time_counts_from_the_beginning_and_not_from_the_last_byte(pending: Peers) -> None:
    pending.update("a", 1)
    pending.now_s = 5.0
    pending.update("b", 1)
    pending.now_s = 9.0
    pending.update("a", 2)
    assert pending.expired_at(9.9) == []
    assert pending.expired_at(10.0) == ["a"]
    assert pending.expired_at(14.9) == ["a"]
    assert pending.expired_at(15.0) == ["a", "b"]


async def test_who_begins_again_is_the_last(pending: Peers) -> None:
    pending.start("a")
    pending.start("b")
    pending.start("a")
    assert pending.oldest() == "b"
    assert len(pending._entries) == 2


async def test_over_the_bound_the_longest_waiting_with_bytes_goes(pending: Peers) -> None:
    pending.start("silent")
    pending.update("a", 50)
    pending.update("b", 50)
    assert pending.dropped == []
    pending.update("b", 51)
    assert pending.dropped == ["a"]
    pending.remove("a")
    pending.remove("a")
    pending.update("b", 51)
    assert pending.dropped == ["a"]


# After the last answer

LINGERING = WebLimits()


class Timers(list[Callable[[], None]]):
    """What is to be called after the next pause."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        assert delay == LINGERING.lingering_pause_s
        self.append(callback)


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def lingering(timers: Timers) -> LingeringClose:
    return LingeringClose(LINGERING, timers.call_later)


def transport() -> Mock:
    one = Mock(spec=asyncio.Transport)
    one.is_closing.return_value = False
    return one


def calls(one: Mock) -> list[str]:
    return [each[0] for each in one.method_calls if each[0] != "is_closing"]


def test_connections_are_read_one_after_another(lingering: LingeringClose, timers: Timers) -> None:
    first, second = transport(), transport()
    for one in (first, second):
        lingering.discard(one, LINGERING.lingering_bytes_at_once + 1)
    assert (calls(first), calls(second), len(timers)) == (["pause_reading"], ["pause_reading"], 1)
    timers.pop()()
    assert (calls(first), calls(second)) == (["pause_reading", "resume_reading"], ["pause_reading"])
    lingering.discard(first, LINGERING.lingering_bytes_max - 1)  # behind the second
    timers.pop()()
    assert calls(second) == ["pause_reading", "resume_reading"]
    timers.pop()()
    assert calls(first) == ["pause_reading", "resume_reading"] * 2
    assert timers == []


def test_no_more_is_read_of_one_connection_than_may_be_in_flight(
    lingering: LingeringClose, timers: Timers
) -> None:
    one = transport()
    lingering.discard(one, LINGERING.lingering_bytes_max)
    assert (calls(one), timers) == (["pause_reading"], [])


def test_connections_that_have_gone_are_left_alone(lingering: LingeringClose, timers: Timers) -> None:
    one, other = transport(), transport()
    lingering.discard(one, LINGERING.lingering_bytes_at_once + 1)
    one.is_closing.return_value = True
    timers.pop()()
    lingering.discard(one, LINGERING.lingering_bytes_at_once + 2)
    assert (calls(one), timers) == (["pause_reading"], [])
    lingering.discard(other, LINGERING.lingering_bytes_at_once + 1)
    timers.pop()()
    assert calls(other) == ["pause_reading", "resume_reading"]


def test_a_little_is_read_without_a_pause(lingering: LingeringClose, timers: Timers) -> None:
    one = transport()
    lingering.discard(one, LINGERING.lingering_bytes_at_once)
    assert (calls(one), timers) == ([], [])
