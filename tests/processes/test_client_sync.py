"""Scripts that read with the synchronous client: how they end."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.programs import program
from tests.scripted import Jetstream
from tests.serving import until

from jetstream.client import FileCursor

SCRIPT = """
import sys
from jetstream.client import FileCursor, subscribe_sync

for event in subscribe_sync(sys.argv[1], cursor=0, store=FileCursor(sys.argv[2])):
    print(event.time_us, flush=True)
"""

# How a server sees a client that leaves while more events come: where its socket holds some that it has not
# read, the kernel sends a reset, which may overtake its close frame.
LEFT = (1000, 1006)


async def test_it_works_where_an_event_loop_runs_already(jetstream: Jetstream) -> None:
    """As in a notebook. The server of this test is on this very loop, so a thread of its own serves."""
    script = """
import asyncio, sys
from jetstream.client import subscribe_sync

async def cell():
    print([event.time_us for event in subscribe_sync(sys.argv[1], cursor=0, limit=3)])

asyncio.run(cell())
"""
    async with program(sys.executable, "-c", script, jetstream.url) as notebook:
        assert await notebook.line() == "[10, 20, 30]\n"


async def test_ctrl_c_ends_a_script_that_waits_and_its_position_is_saved(
    jetstream: Jetstream, tmp_path: Path
) -> None:
    store = tmp_path / "x.cursor"
    async with program(sys.executable, "-c", SCRIPT, jetstream.url, store) as script:
        assert len(await script.lines(30)) == 30
        await until(lambda: FileCursor(store).load() == 301)  # it waits for the next event
        script.interrupt()
        code, _, err = await script.ended()
    assert code != 0
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert "Exception ignored" not in err
    await until(lambda: jetstream.closed)
    assert jetstream.closed == [1000]


async def test_a_script_that_ends_closes_its_connection(jetstream: Jetstream) -> None:
    script = (
        "import sys; from jetstream.client import subscribe_sync as s; e = s(sys.argv[1], cursor=0); next(e)"
    )
    async with program(sys.executable, "-c", script, jetstream.url) as running:
        code, _, err = await running.ended()
    assert (code, err) == (0, "")
    await until(lambda: jetstream.closed)
    assert jetstream.closed[0] in LEFT
