"""What an upstream is asked. How it answers is tested with real servers, in tests/integration."""

from __future__ import annotations

import asyncio

import pytest

from jetstream.upstream.mirror.question import newest_of, question_of
from jetstream.upstreams import SUBSCRIBE_EVENTS_PATH

CURSOR = f"cursor={10**18}"


@pytest.mark.parametrize(
    ("url", "asked", "fields"),
    [
        (f"wss://a.example{SUBSCRIBE_EVENTS_PATH}", f"https://a.example/events?{CURSOR}", {}),
        (f"ws://[::1]:7{SUBSCRIBE_EVENTS_PATH}", f"http://[::1]:7/events?{CURSOR}", {}),
        (
            f"wss://a.example/x{SUBSCRIBE_EVENTS_PATH}?token=t",
            f"https://a.example/x/events?token=t&{CURSOR}",
            {},
        ),
        (
            f"wss://me:p%40ss@a.example{SUBSCRIBE_EVENTS_PATH}",
            f"https://a.example/events?{CURSOR}",
            {"Authorization": "Basic bWU6cEBzcw=="},
        ),
    ],
)
def test_the_question_goes_to_the_events_of_the_same_server(
    url: str, asked: str, fields: dict[str, str]
) -> None:
    assert question_of(url) == (asked, fields)


async def test_a_server_that_is_not_there_does_not_answer() -> None:
    assert await newest_of(f"ws://127.0.0.1:1{SUBSCRIBE_EVENTS_PATH}", 5.0) is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_no_other_server_gets_the_credentials(status: int) -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        location = b"http://%b/elsewhere" % heads[0].split(b"Host: ")[1].split(b"\r\n")[0]
        writer.write(
            b"HTTP/1.1 %d x\r\nLocation: %b\r\nJetstream-Cursor: 7\r\nContent-Length: 0\r\n\r\n"
            % (status, location)
        )
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        assert await newest_of(f"ws://me:secret@127.0.0.1:{port}{SUBSCRIBE_EVENTS_PATH}", 5.0) is None
    assert [head.split()[1].split(b"?")[0] for head in heads] == [b"/events"]
