"""What a client sends after the last answer, without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from unittest.mock import Mock

import pytest

from jetstream.limits import WebLimits
from jetstream.web.lingering import LingeringClose

LIMITS = WebLimits()


class Timers(list[Callable[[], None]]):
    """What is to be called after the next pause."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        assert delay == LIMITS.lingering_pause_s
        self.append(callback)


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def lingering(timers: Timers) -> LingeringClose:
    return LingeringClose(LIMITS, timers.call_later)


def transport() -> Mock:
    one = Mock(spec=asyncio.Transport)
    one.is_closing.return_value = False
    return one


def calls(one: Mock) -> list[str]:
    return [each[0] for each in one.method_calls if each[0] != "is_closing"]


def test_connections_are_read_one_after_another(lingering: LingeringClose, timers: Timers) -> None:
    first, second = transport(), transport()
    for one in (first, second):
        lingering.discard(one, LIMITS.lingering_bytes_at_once + 1)
    assert (calls(first), calls(second), len(timers)) == (["pause_reading"], ["pause_reading"], 1)
    timers.pop()()
    assert (calls(first), calls(second)) == (["pause_reading", "resume_reading"], ["pause_reading"])
    lingering.discard(first, LIMITS.lingering_bytes_max - 1)  # behind the second
    timers.pop()()
    assert calls(second) == ["pause_reading", "resume_reading"]
    timers.pop()()
    assert calls(first) == ["pause_reading", "resume_reading"] * 2
    assert timers == []


def test_no_more_is_read_of_one_connection_than_may_be_in_flight(
    lingering: LingeringClose, timers: Timers
) -> None:
    one = transport()
    lingering.discard(one, LIMITS.lingering_bytes_max)
    assert (calls(one), timers) == (["pause_reading"], [])


def test_connections_that_have_gone_are_left_alone(lingering: LingeringClose, timers: Timers) -> None:
    one, other = transport(), transport()
    lingering.discard(one, LIMITS.lingering_bytes_at_once + 1)
    one.is_closing.return_value = True
    timers.pop()()
    lingering.discard(one, LIMITS.lingering_bytes_at_once + 2)
    assert (calls(one), timers) == (["pause_reading"], [])
    lingering.discard(other, LIMITS.lingering_bytes_at_once + 1)
    timers.pop()()
    assert calls(other) == ["pause_reading", "resume_reading"]


def test_a_little_is_read_without_a_pause(lingering: LingeringClose, timers: Timers) -> None:
    one = transport()
    lingering.discard(one, LIMITS.lingering_bytes_at_once)
    assert (calls(one), timers) == ([], [])
