"""Small real processes, which speak to a `Process` as a server's child does."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from structlog.testing import capture_logs

from jetstream.errors import SettingError
from jetstream.limits import SupervisorLimits
from jetstream.supervisor.channel import ChannelError, ChannelMessage
from jetstream.supervisor.failures import ProcessFailed, fields_of
from jetstream.supervisor.process import Place, Process

# What each child begins with: `tell` sends a message, `hear` returns the kind and the number of the next one;
# at the end, an empty kind.
SPEAK = """
import json, os, signal, socket, struct, sys, time
control = socket.socket(fileno=0)
def tell(kind, number=0, **fields):
    head = json.dumps([kind, number, fields]).encode()
    control.sendall(struct.pack("<II", len(head), 0) + head)
def read(size):
    data = b""
    while len(data) < size:
        more = control.recv(size - len(data))
        if not more:
            return b""
        data += more
    return data
def hear():
    lengths = read(8)
    if not lengths:
        return "", 0
    head, body = struct.unpack("<II", lengths)
    kind, number, _ = json.loads(read(head))
    read(body)
    return kind, number
assert hear() == ("setup", 0)
"""
READY = SPEAK + 'tell("ready")\n'
UNTIL_STOP = READY + 'while hear()[0] not in ("stop", ""): pass\n'
QUICK = SupervisorLimits(backoff_first_s=0.001, backoff_max_s=0.001)
PATIENCE_S = 20.0


class Owner:
    """Keeps what a process does."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[str] = asyncio.Queue()

    def began(self, process: Process, passing: socket.socket) -> ChannelMessage:
        passing.close()
        return ChannelMessage("setup")

    def ready(self, process: Process) -> None:
        self.events.put_nowait("ready")

    def told(self, process: Process, message: ChannelMessage) -> None:
        self.events.put_nowait(message.kind)

    async def asked(self, process: Process, message: ChannelMessage) -> ChannelMessage:
        return ChannelMessage("", {"was": message.kind})

    def ended(self, process: Process) -> None:
        self.events.put_nowait("ended")

    async def sees(self, *events: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            for each in events:
                assert await self.events.get() == each


@asynccontextmanager
async def running(
    script: str, limits: SupervisorLimits = QUICK, write: Callable[[bytes], object] = lambda _: None
) -> AsyncIterator[tuple[Process, Owner, asyncio.Task[None]]]:
    """Run a process whose script this is."""
    owner = Owner()
    process = Process(Place("edge", 3), owner, limits, command=("-I", "-S", "-c", script), write=write)
    task = asyncio.create_task(process.run())
    try:
        yield process, owner, task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, ProcessFailed, SettingError):
            await task


async def test_a_process_that_is_killed_is_replaced() -> None:
    async with running(UNTIL_STOP) as (process, owner, _):
        await owner.sees("ready")
        first = process.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await owner.sees("ended", "ready")
        assert process.pid != first
        assert process.ends == {"died": 1, "hung": 0}


async def test_a_process_that_is_told_to_stop_is_not_replaced() -> None:
    async with running(UNTIL_STOP) as (process, owner, task):
        await owner.sees("ready")
        process.stop()
        await owner.sees("ended")
        await task
        assert process.ends == {"died": 0, "hung": 0}


async def test_a_process_is_replaced_no_more_while_it_is_waited_for() -> None:
    limits = SupervisorLimits(backoff_first_s=1_000.0, backoff_max_s=1_000.0)
    async with running(READY, limits) as (process, owner, task):
        await owner.sees("ready", "ended")
        process.stop()
        async with asyncio.timeout(PATIENCE_S):
            await task


async def test_what_a_process_has_written_last_is_why_it_cannot_start() -> None:
    script = SPEAK + 'print("{}", "no such thing", sep="\\n", file=sys.stderr); sys.exit(3)'
    written: list[bytes] = []
    async with running(script, write=written.append) as (_, _, task):
        with pytest.raises(ProcessFailed) as failed:
            await task
    assert str(failed.value) == "edge-3: it ended with status 3, and wrote: no such thing"
    assert b"".join(written) == b"{}\nno such thing\n"


async def test_a_setting_that_a_process_refuses_is_refused_in_the_same_words() -> None:
    error = SettingError("--tls-cert", "/nowhere", "cannot be read")
    async with running(SPEAK + f'tell("failed", **{fields_of(error)!r})') as (_, _, task):
        with pytest.raises(SettingError) as failed:
            await task
    assert str(failed.value) == str(error)


async def test_a_process_that_ends_again_and_again_is_given_up() -> None:
    limits = SupervisorLimits(backoff_first_s=0.001, backoff_max_s=0.001, ends_max=3, ends_s=30.0)
    async with running(READY + 'tell("failed", text="the disk is gone")', limits) as (process, _, task):
        with pytest.raises(ProcessFailed) as failed:
            await task
    assert str(failed.value) == ("edge-3 has ended 3 times within 30 s; the last time: the disk is gone")
    assert process.ends == {"died": 3, "hung": 0}


async def test_a_process_that_is_silent_for_too_long_is_killed_and_replaced() -> None:
    limits = SupervisorLimits(backoff_first_s=0.001, backoff_max_s=0.001, looks=3)
    script = READY + "while True:\n kind, number = hear()\n if kind == 'live': tell('answer', number)"
    async with running(script, limits) as (process, owner, _):
        await owner.sees("ready")
        for _ in range(3):
            process.look()
        await process.ask(ChannelMessage("live"), PATIENCE_S)
        process.hear()
        for _ in range(3):
            process.look()
        assert owner.events.empty()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        process.look()
        await owner.sees("ended", "ready")
        assert process.ends == {"died": 0, "hung": 1}


async def test_a_process_may_be_silent_for_longer_while_it_starts() -> None:
    limits = SupervisorLimits(looks=2, hang_s=1.0, start_s=3.0)
    async with running("import time; time.sleep(1000)", limits) as (process, owner, _):
        while process.channel is None:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.001)
        for _ in range(6):
            process.look()
        assert owner.events.empty()
        process.look()
        await owner.sees("ended")


ASKING = """
tell("ask", 1)
while True:
    kind, number = hear()
    if kind == "answer":
        tell("answered")
    elif number:
        tell("answer", number, heard=kind)
"""


async def test_questions_are_answered_both_ways_while_a_process_is_ready() -> None:
    script = READY + ASKING
    async with running(script) as (process, owner, _):
        with pytest.raises(ChannelError, match="not ready"):
            await process.ask(ChannelMessage("early"), PATIENCE_S)
        await owner.sees("ready", "answered")
        assert (await process.ask(ChannelMessage("question"), PATIENCE_S)).fields == {"heard": "question"}


async def test_a_process_gets_no_signals_of_the_terminal() -> None:
    async with running(UNTIL_STOP) as (process, owner, _):
        await owner.sees("ready")
        assert process.pid is not None
        assert os.getsid(process.pid) != os.getsid(0)


async def test_a_process_that_is_told_to_stop_before_there_is_a_channel_stops() -> None:
    async with running(UNTIL_STOP) as (process, _, task):
        while process.pid is None:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
        assert process.channel is None
        process.stop()
        async with asyncio.timeout(PATIENCE_S):
            await task


async def test_a_process_that_is_retired_goes_on_and_is_not_replaced() -> None:
    async with running(UNTIL_STOP) as (process, owner, task):
        await owner.sees("ready")
        process.retire()
        assert process.is_ready.is_set()
        assert process.pid is not None
        with capture_logs() as logs:
            os.kill(process.pid, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_S):
                await task
        await owner.sees("ended")
        assert owner.events.empty()
        assert process.ends == {"died": 0, "hung": 0}
    (line,) = logs
    assert (line["ended"], line["problem"]) == ("edge-3", "it was ended by SIGKILL")


async def test_one_that_got_the_signal_of_the_whole_server_ends_without_a_word() -> None:
    leaving = READY + 'signal.signal(signal.SIGTERM, lambda *_: sys.exit())\ntell("set")\nhear()'
    async with running(leaving) as (process, owner, task):
        await owner.sees("ready", "set")
        process.retire()
        assert process.pid is not None
        with capture_logs() as logs:
            os.kill(process.pid, signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                await task
    assert logs == []


async def test_without_a_channel_to_it_a_process_is_ended_and_its_sockets_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(*_arguments: object, **_more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # epoll has a limit for each user

    monkeypatch.setattr(asyncio.get_running_loop(), "create_unix_connection", refuse)
    process = Process(Place("edge", 3), Owner(), QUICK, command=("-I", "-S", "-c", UNTIL_STOP))
    with pytest.raises(ProcessFailed) as failed:
        await process.run()
    assert str(failed.value) == "edge-3 cannot be started: [Errno 28] No space left on device"
    assert process._child is not None
    child, *socks = process._child
    assert child.returncode is not None
    assert [sock.fileno() for sock in socks] == [-1, -1]
