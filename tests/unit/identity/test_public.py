"""Responses of hosts that others have chosen: when they are complete, and what is in them."""

from __future__ import annotations

import asyncio
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetstream.identity.failures import KEY_FAILURES, NoKey
from jetstream.identity.public import Names, PublicFetcher, _collect, parse_response

OK = b"HTTP/1.1 200 OK\r\n"
WITH_LENGTH = OK + b"Content-Type: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n"
TO_THE_END = OK + b"\r\nhello"


async def collected(raw: bytes, sizes: list[int], bytes_max: int = 1_000, ends: bool = True) -> bytes:
    """Return what is read of bytes that come in parts of these sizes, repeated."""
    reader = asyncio.StreamReader()

    async def feed() -> None:
        left = raw
        while left:
            for size in sizes:
                reader.feed_data(left[:size] or b"")
                left = left[size:]
                await asyncio.sleep(0)
                if not left:
                    break
        if ends:
            reader.feed_eof()

    feeding = asyncio.create_task(feed())
    try:
        return await _collect(reader, bytes_max)
    finally:
        await feeding


@pytest.mark.parametrize("raw", [WITH_LENGTH, CHUNKED, TO_THE_END])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
async def test_a_body_is_the_same_in_whatever_parts_it_comes(raw: bytes, size: int) -> None:
    assert parse_response(await collected(raw, [size]), 100) == b"hello"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
async def test_a_length_ends_a_response(size: int) -> None:
    assert await collected(WITH_LENGTH, [size], ends=False) == WITH_LENGTH


async def test_a_response_that_is_too_long_is_not_read_on() -> None:
    with pytest.raises(NoKey) as caught:
        await collected(TO_THE_END + bytes(10_000), [100])
    assert caught.value.reason == "too_big"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "unreachable"),
        (b"HTTP/1.1 200", ""),  # and no document in it
        (b"HTTP/9 what\r\n\r\n", "malformed"),
        (b"220 smtp.example.com ready\r\n", "malformed"),
        (OK + b"Content-Length: 9\r\n\r\nhello", "unreachable"),
        (OK + b"Content-Length: -9\r\n\r\nhello", ""),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "unreachable"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe", "unreachable"),
        (OK + b"Content-Length: 99999999999999999999999\r\n\r\nhello", "too_big"),
        (OK + b"Content-Length: 101\r\n\r\nhello", "too_big"),
        (OK + b"Content-Length: 100\r\n\r\nhello", "unreachable"),
        (OK + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\nhello", ""),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffff\r\nhello", "unreachable"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n-ffffffffffffffffffffff\r\nhello", "malformed"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n64\r\n" + bytes(100) + b"\r\n0\r\n\r\n", ""),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n65\r\n" + bytes(101) + b"\r\n0\r\n\r\n", "too_big"),
        (b"HTTP/1.1 429 x\r\nRetry-After: Wed, 21 Oct 99999999999 07:28:00 GMT\r\n\r\n", "rate_limited"),
        (b"HTTP/1.1 503 x\r\nRetry-After: 21 Oct 2015 07:28:00 +99999999999999999999\r\n\r\n", "status"),
        (b"HTTP/1.1 " + b"9" * 30 + b" x\r\n\r\n", "malformed"),
        (OK + b"a: b\r\n" * 101 + b"\r\n", "malformed"),
        (OK + b"a: b\r\n" * 3_000 + b"\r\n", "malformed"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 3_000, "malformed"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000, "malformed"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 5 + WITH_LENGTH, ""),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1/\r\n\r\n", "redirect"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "not_found"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "status"),
        (OK + b"\r\n" + bytes(200), "too_big"),
    ],
)
def test_responses(raw: bytes, reason: str) -> None:
    assert outcome(raw) == reason


def outcome(raw: bytes) -> str:
    """Return why there is no body; empty: there is one."""
    try:
        parse_response(raw, 100)
    except NoKey as error:
        return error.reason
    return ""


def test_a_host_that_asks_for_a_pause() -> None:
    with pytest.raises(NoKey) as caught:
        parse_response(b"HTTP/1.1 429 x\r\nRetry-After: 90\r\n\r\n", 100)
    assert (caught.value.reason, caught.value.retry_after) == ("rate_limited", 90.0)


@settings(max_examples=60)
@given(st.binary(max_size=60), st.integers(0, 90), st.integers(0, 90))
def test_any_bytes_are_a_body_or_a_reason(junk: bytes, start: int, end: int) -> None:
    for raw in (WITH_LENGTH, CHUNKED):
        assert outcome(raw[:start] + junk + raw[end:]) in {"", *KEY_FAILURES}


# What a hostile server writes in the place of a number.
NUMBERS = st.one_of(
    st.from_regex(rb"[-+]?[0-9]{1,30}", fullmatch=True),
    st.from_regex(rb"[-+]?[0-9a-f]{1,30}", fullmatch=True),
)


@settings(max_examples=100)
@given(
    st.sampled_from(
        [
            b"HTTP/1.1 %b x\r\n\r\nhello",
            b"HTTP/%b 200 x\r\n\r\nhello",
            OK + b"Content-Length: %b\r\n\r\nhello",
            OK + b"Transfer-Encoding: chunked\r\n\r\n%b\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 429 x\r\nRetry-After: %b\r\n\r\n",
            b"HTTP/1.1 429 x\r\nRetry-After: Wed, 21 Oct %b 07:28:00 GMT\r\n\r\n",
            b"HTTP/1.1 503 x\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 %b\r\n\r\n",
        ]
    ),
    NUMBERS,
)
def test_any_number_is_a_body_or_a_reason(response: bytes, number: bytes) -> None:
    assert outcome(response % number) in {"", *KEY_FAILURES}


async def test_a_look_up_that_cannot_begin_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    names = Names(1, lambda *_, **__: [])
    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", fail)
        for _ in range(2):
            with pytest.raises(NoKey) as caught:
                await names.look_up("a.com")
            assert caught.value.detail == "can't start new thread"
    assert await names.look_up("a.com") == []
    assert names.running == 0


async def test_an_unknown_url_goes_nowhere() -> None:
    looked_up: list[str] = []

    def look_up(host: str, *_: object, **__: object) -> list[object]:
        looked_up.append(host)
        return []

    with pytest.raises(NoKey) as caught:
        await PublicFetcher(2, look_up=look_up).get("https://a.com/x", 100, 5.0)
    assert caught.value.reason == "not_public"
    assert looked_up == ["a.com."]
