"""What comes after the last answer, without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from unittest.mock import Mock

import pytest

from jetstream.web.discard import BYTES_AT_ONCE, BYTES_MAX, REST_S, Discards


@pytest.fixture
async def timers(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What the loop was asked to do later."""
    later: list[Callable[[], None]] = []

    def call_later(delay: float, callback: Callable[[], None]) -> Mock:
        assert delay == REST_S
        later.append(callback)
        return Mock()

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", call_later)
    return later


def transport() -> Mock:
    one = Mock(spec=asyncio.Transport)
    one.is_closing.return_value = False
    return one


def calls(one: Mock) -> list[str]:
    return [each[0] for each in one.method_calls if each[0] != "is_closing"]


async def test_connections_are_read_one_after_another(timers: list[Callable[[], None]]) -> None:
    discards = Discards()
    first, second = transport(), transport()
    for one in (first, second):
        discards.drop(one, BYTES_AT_ONCE + 1)
    assert (calls(first), calls(second), len(timers)) == (["pause_reading"], ["pause_reading"], 1)
    timers.pop()()
    assert (calls(first), calls(second)) == (["pause_reading", "resume_reading"], ["pause_reading"])
    discards.drop(first, BYTES_MAX - 1)  # waits behind the second
    timers.pop()()
    assert calls(second) == ["pause_reading", "resume_reading"]
    timers.pop()()
    assert calls(first) == ["pause_reading", "resume_reading"] * 2
    assert timers == []


async def test_of_one_connection_no_more_is_read_than_may_be_on_its_way(
    timers: list[Callable[[], None]],
) -> None:
    one = transport()
    Discards().drop(one, BYTES_MAX)
    assert (calls(one), timers) == (["pause_reading"], [])


async def test_connections_that_are_gone_are_left_alone(timers: list[Callable[[], None]]) -> None:
    discards = Discards()
    one, other = transport(), transport()
    discards.drop(one, BYTES_AT_ONCE + 1)
    one.is_closing.return_value = True
    timers.pop()()
    discards.drop(one, BYTES_AT_ONCE + 2)
    assert (calls(one), timers) == (["pause_reading"], [])
    discards.drop(other, BYTES_AT_ONCE + 1)
    timers.pop()()
    assert calls(other) == ["pause_reading", "resume_reading"]


async def test_a_little_does_not_wait(timers: list[Callable[[], None]]) -> None:
    one = transport()
    Discards().drop(one, BYTES_AT_ONCE)
    assert (calls(one), timers) == ([], [])
