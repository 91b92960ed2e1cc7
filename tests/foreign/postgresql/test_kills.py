"""Processes that write are killed, frozen and woken, and so is the server: each event is stored once."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from tests.crash.writer import accounts_of, has_gap, repo_of, state_of
from tests.foreign.postgresql.engine import PostgresEngine
from tests.foreign.postgresql.server import Server
from tests.unit.eventlog.events import make_event
from tests.unit.eventlog.reading import read_all

from jetstream.eventlog import SourceCursor
from jetstream.eventlog.postgresql.store import PostgresLog, PostgresOptions
from jetstream.eventlog.postgresql.term import Term
from jetstream.model.event import Event
from jetstream.model.filter import EVERYTHING


class Writer:
    def __init__(self, address: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.foreign.postgresql.writer", address], stdout=subprocess.PIPE
        )

    def kill(self) -> dict[int, int]:
        """Kill it, and return what it said was stored: the position of events by their number."""
        self.process.kill()
        assert self.process.stdout is not None
        said = [line.split() for line in self.process.stdout.read().splitlines()]
        self.process.wait()
        self.process.stdout.close()
        return {int(number): int(position) for number, position in said if number != b"0"}


async def follow(log: PostgresLog, seen: dict[int, int]) -> None:
    """Read as a subscriber does, for ever."""
    position = 1
    while True:
        await log.wait(position)
        stop = log.tip + 1
        while (batch := await log.read(position, stop, EVERYTHING)) is not None:
            for index in range(batch.index(position), batch.index(stop)):
                number = number_of(batch.event(index))
                assert number not in seen
                seen[number] = batch.times[index]
            position = min(batch.last + 1, stop)
        position = stop


def number_of(event: Event) -> int:
    return int(re.findall(rb"[0-9]+", event.rkey or event.body)[-1])


async def test_each_event_is_stored_once_whatever_is_killed(
    own_server: Callable[..., Server], kills: int
) -> None:
    dice = random.Random(kills)
    server = own_server(fsync="on")
    await (await PostgresEngine(server.address).open()).close()
    edge = await PostgresLog.open(server.address, PostgresOptions())
    seen: dict[int, int] = {}
    following = asyncio.create_task(follow(edge, seen))
    writers = [Writer(server.address) for _ in range(2)]
    said: dict[int, int] = {}
    for turn in range(2 * kills):
        before = len(seen)
        deadline = time.monotonic() + 60
        while len(seen) < before + 200:
            assert not following.done(), following
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        await asyncio.sleep(dice.uniform(0.05, 0.5))
        match dice.choice(["writer", "frozen", "server"]) if turn else "server":
            case "writer":
                at = dice.randrange(2)
                said |= writers[at].kill()
                writers[at] = Writer(server.address)
            case "frozen":
                pid = writers[dice.randrange(2)].process.pid
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(2.0)
                os.kill(pid, signal.SIGCONT)
            case "server":
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
    for writer in writers:
        said |= writer.kill()
    log = await PostgresEngine(server.address).open()
    stored = await read_all(log)
    numbers = {number_of(event): time_us for time_us, event in stored}
    assert [event for _, event in stored] == [make_event(number) for number in range(1, len(stored) + 1)]
    assert said.items() <= numbers.items()
    assert len(stored) > 400 * kills
    await edge.wait(log.tip)
    while len(seen) < len(stored):
        assert not following.done(), following
        await asyncio.sleep(0.05)
    assert seen == numbers
    await check_changes(log.term, numbers)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await edge.close()
    await log.close()


async def check_changes(log: Term, times: dict[int, int]) -> None:
    """Compare what is stored beside the events with what the appends said."""
    last = len(times)
    numbers = range(1, last + 1)
    states = {repo_of(number): state_of(number) for number in numbers}
    await log.load_repos(states)
    assert {did: log.repo(did) for did in states} == states
    accounts = accounts_of(numbers)
    assert log.accounts() == {key: state for key, state in accounts.items() if state is not None}
    gaps = [(times[number], f"did:plc:{number}") for number in numbers if has_gap(number)]
    assert [(gap.time_us, gap.did) for gap in await log.gaps(0, last + 1)] == gaps
    (cursor,) = log.cursors.values()
    assert cursor == SourceCursor(last, stored_to=last + 9, unstored=(last + 2, last + 7))
