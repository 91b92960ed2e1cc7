"""Memory after 20,000 clients of every kind is within 10 % of what it was after the first 2,000."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.builders import commit, like
from tests.relay import Relay, numbered
from tests.serving import Process, process
from tests.subscriber import subscribe
from tests.visitors import KINDS, visit

FIRST, ALL = 2_000, 20_000
AT_ONCE = 100
LEFT_AFTER_S = 5.0  # until the server has dealt with who left: its longest timeout for that is 3 s


async def test_nothing_stays_of_clients_that_left(tmp_path: Path) -> None:
    async with Relay() as relay, process(relay.url, tmp_path, "--upstream-cursor", "0") as server:
        relay.publish(numbered([commit(seq, [like(seq)]) for seq in range(1, 301)]))
        async with subscribe(server.port, cursor=1) as subscriber:
            await subscriber.events(300)
        await _come_and_go(server, 0, FIRST)
        before = _resident_bytes(server)
        await _come_and_go(server, FIRST, ALL)
        assert _resident_bytes(server) < 1.1 * before


async def _come_and_go(server: Process, first: int, last: int) -> None:
    kinds = list(KINDS)
    for start in range(first, last, AT_ONCE):
        numbers = range(start, start + AT_ONCE)
        await asyncio.gather(
            *(visit(server.port, kinds[n % len(kinds)], n, reset=n % 2 == 0) for n in numbers)
        )
    await asyncio.sleep(LEFT_AFTER_S)


def _resident_bytes(server: Process) -> int:
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096
