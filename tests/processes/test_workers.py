"""Messages are examined by real processes, which are killed, hang, and cannot be started."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests import examining
from tests.examining import COMMAND, FAILS, HANGS, KILLED, KILLS, QUICK, STOPS
from tests.programs import Program, program
from tests.serving import until
from tests.signed import KEY, Account, fields_of

from jetstream.admission.examiners.examination import Finding, Task, examine
from jetstream.admission.examiners.pool import Examiners
from jetstream.atproto.encoded_key import parse_multikey
from jetstream.errors import WorkerError
from jetstream.limits import WorkerLimits
from jetstream.metrics import WORKER_ENDS, Metrics
from jetstream.upstream.lenient import DAMAGED

OWN = parse_multikey(KEY.multibase)
SMALL = WorkerLimits(parcel_tasks=3)


def did(number: int) -> str:
    return f"did:plc:{number:024d}".replace("0", "a").replace("1", "b").replace("8", "c").replace("9", "d")


def commits(accounts: int = 8, each: int = 5) -> list[Task]:
    """Return commits of several accounts, which take turns."""
    tasks = []
    made = [Account(did=did(number)) for number in range(accounts)]
    for number in range(each):
        for account in made:
            fields = fields_of(account.create(f"{number}"), account.repo.did)
            tasks.append(Task("commit", fields, (OWN,)))
    return tasks


TASKS = commits()
EXPECTED = [examine(task, "full") for task in TASKS]
Open = Callable[..., Any]


def changed(task: Task, **fields: Any) -> Task:
    return task._replace(fields={**task.fields, **fields})


class Setup:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._metrics = Metrics()

    async def open(self, count: int, limits: WorkerLimits = SMALL) -> Examiners:
        examiners = Examiners("full", count, self._metrics.workers(), limits=limits, command=COMMAND)
        return await self._stack.enter_async_context(examiners)

    def restarts(self) -> dict[str, float]:
        name, value = "jetstream_verify_worker_restarts_total", self._metrics.registry.get_sample_value
        counts = {cause: value(name, {"cause": cause}) for cause in WORKER_ENDS}
        return {cause: count for cause, count in counts.items() if count}


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    async with AsyncExitStack() as stack:
        yield Setup(stack)


def kill(examiners: Examiners, number: int, sent: signal.Signals = signal.SIGKILL) -> int:
    process = examiners.workers[number].process
    assert process is not None
    os.kill(process.pid, sent)
    return process.pid


async def replaced(examiners: Examiners, number: int, pid: int) -> None:
    worker = examiners.workers[number]
    await until(lambda: worker.ready and worker.process is not None and worker.process.pid != pid)


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_findings_come_in_the_order_of_the_tasks(setup: Setup, count: int) -> None:
    examiners = await setup.open(count)
    calls = [examiners.examine(TASKS), examiners.examine(TASKS[::-1]), examiners.examine([])]
    assert await asyncio.gather(*calls) == [EXPECTED, EXPECTED[::-1], []]
    assert all(finding.signed and finding.events for finding in EXPECTED)
    assert setup.restarts() == {}


async def test_processes_that_are_killed_all_the_time_lose_nothing(setup: Setup) -> None:
    examiners = await setup.open(2)
    done: list[list[Finding]] = []

    async def call() -> None:
        for _ in range(10):
            found = await examiners.examine(TASKS)
            done.append(found)

    calling = [asyncio.create_task(call()) for _ in range(4)]
    for number in range(5):
        pid = kill(examiners, number % 2)
        await replaced(examiners, number % 2, pid)
    await asyncio.gather(*calling)
    assert len(done) == 40
    assert all(found == EXPECTED for found in done)
    assert setup.restarts() == {"died": 5}
    assert examiners.bytes == 0


async def test_a_message_whose_processes_are_killed_by_others_is_not_refused(
    setup: Setup, tmp_path: Path
) -> None:
    examiners = await setup.open(1, WorkerLimits())
    unlucky = changed(TASKS[0], time=f"{KILLED}{tmp_path / 'count'}")
    assert await examiners.examine([unlucky]) == [examine(unlucky, "full")]
    assert setup.restarts() == {"died": 3}


async def test_a_message_whose_processes_are_stopped_is_the_others_no_obstacle(setup: Setup) -> None:
    examiners = await setup.open(1, replace(QUICK, kills_max=2))
    stopped = changed(TASKS[0], time=STOPS)
    found = await examiners.examine([stopped, *TASKS])
    assert found[1:] == EXPECTED
    assert found[0].refused is not None
    assert setup.restarts() == {"hung": 3}


@pytest.mark.parametrize("what", [KILLS, FAILS])
async def test_a_message_that_ends_its_process_is_refused_and_stops_no_other(setup: Setup, what: str) -> None:
    examiners = await setup.open(2, replace(SMALL, kills_max=2))
    tasks = [changed(task, time=what) if place == 7 else task for place, task in enumerate(TASKS)]
    found = await examiners.examine(tasks)
    assert found[:7] + found[8:] == EXPECTED[:7] + EXPECTED[8:]
    verdict = found[7].refused
    assert verdict is not None
    assert (verdict.reason, found[7][1:]) == ("crash", (None, None, (), ()))
    # One with others in hand, and two with this one alone. If a process ends before its last answer was read,
    # the parcel before is blamed first, and taken apart for nothing: once for each parcel at most.
    assert 3 <= setup.restarts()["died"] <= 3 + len(TASKS) // 3
    assert await examiners.examine(TASKS) == EXPECTED


@pytest.mark.parametrize("count", [0, 2])
async def test_an_error_on_one_message_ends_no_process(setup: Setup, count: int) -> None:
    examiners = await setup.open(count)
    found = await examiners.examine([changed(TASKS[0], ops=None), *TASKS])
    assert found[0].refused is not None
    assert found[0].refused.reason == "crash"
    assert "TypeError" in found[0].refused.traceback
    assert found[1:] == EXPECTED
    assert setup.restarts() == {}


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("blocks", [1, True, "text"])
async def test_blocks_that_are_none_end_nothing(setup: Setup, count: int, blocks: object) -> None:
    examiners = await setup.open(count)
    found = await examiners.examine([changed(TASKS[0], blocks=blocks), *TASKS])
    assert found[0].refused is not None
    assert found[0].refused.reason == "car"
    assert found[1:] == EXPECTED


async def test_a_message_that_takes_forever_is_refused(setup: Setup) -> None:
    examiners = await setup.open(1, QUICK)
    found, others = await asyncio.gather(
        examiners.examine([changed(TASKS[0], time=HANGS)]), examiners.examine(TASKS)
    )
    assert [finding.refused and finding.refused.reason for finding in found] == ["crash"]
    assert others == EXPECTED
    assert setup.restarts() == {"hung": 2}


async def test_a_process_that_is_killed_while_it_is_idle_is_replaced(setup: Setup) -> None:
    examiners = await setup.open(1)
    pid = kill(examiners, 0)
    await replaced(examiners, 0, pid)
    assert await examiners.examine(TASKS) == EXPECTED
    assert setup.restarts() == {"died": 1}


async def test_signals_to_stop_leave_a_process_at_work(setup: Setup) -> None:
    examiners = await setup.open(1)
    for sent in (signal.SIGINT, signal.SIGTERM):
        kill(examiners, 0, sent)
        assert await examiners.examine(TASKS) == EXPECTED
    assert setup.restarts() == {}


async def test_a_bounded_number_of_bytes_is_with_the_processes(setup: Setup) -> None:
    examiners = await setup.open(1, WorkerLimits(parcel_tasks=2, bytes_max=10_000))
    kill(examiners, 0, signal.SIGSTOP)
    calls = [asyncio.create_task(examiners.examine(TASKS)) for _ in range(3)]
    await until(lambda: examiners.bytes > 5_000)
    for _ in range(50):
        await asyncio.sleep(0)
        assert examiners.bytes <= 10_000
    calls.pop().cancel()
    kill(examiners, 0, signal.SIGCONT)
    assert await asyncio.gather(*calls) == [EXPECTED, EXPECTED]
    assert examiners.bytes == 0


async def test_a_message_of_more_bytes_than_that_is_sent_alone(setup: Setup) -> None:
    examiners = await setup.open(1, WorkerLimits(parcel_tasks=2, bytes_max=1))
    assert await examiners.examine(TASKS) == EXPECTED


async def test_what_cannot_be_sent_or_is_damaged_has_the_same_finding(setup: Setup) -> None:
    nested: object = 0
    for _ in range(1_200):
        nested = [nested]
    odd = [changed(TASKS[3], ops=[*TASKS[3].fields["ops"], op]) for op in (nested, DAMAGED)]
    tasks = [*TASKS[:5], *odd, changed(TASKS[6], extra=nested)]
    examiners = await setup.open(1, WorkerLimits())
    assert await examiners.examine(tasks) == [examine(task, "full") for task in tasks]
    cid = Examiners("cid", 1, Metrics().workers(), command=COMMAND)
    async with cid:
        (found,) = await cid.examine(odd[1:])
    assert found.drops == ["op_cbor"]


async def test_a_process_that_cannot_be_started_is_an_error() -> None:
    metrics = Metrics()
    command = ["-c", "raise SystemExit(3)"]
    limits = WorkerLimits(starts_failed_max=1)
    with pytest.raises(WorkerError, match=r"no process can be started \(it ended with status 3\)"):
        async with Examiners("full", 2, metrics.workers(), limits=limits, command=command):
            pass


async def test_a_machine_without_files_to_open_is_an_error() -> None:
    limits = WorkerLimits(starts_failed_max=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(WorkerError, match=r"no process can be started \(.*Too many open files"):
            async with Examiners("full", 1, Metrics().workers(), limits=limits):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_calls_that_wait_learn_of_it(setup: Setup, tmp_path: Path) -> None:
    """The first process works, and those after it do not start."""
    flag = tmp_path / "flag"
    script = f"""
import pathlib, sys
flag = pathlib.Path({str(flag)!r})
if flag.exists(): sys.exit(4)
flag.touch()
sys.path.insert(0, {str(Path(examining.__file__).parents[1])!r})
from tests.examining import main, deadly
main(deadly)
"""
    limits = WorkerLimits(starts_failed_max=1)
    examiners = Examiners("full", 1, Metrics().workers(), limits=limits, command=["-c", script])
    async with examiners:
        with pytest.raises(WorkerError, match="it ended with status 4"):
            await examiners.examine([changed(TASKS[0], time=KILLS)])
        with pytest.raises(WorkerError, match="it ended with status 4"):
            await examiners.examine(TASKS)


# The server's own end


def server(count: int, *hanging: str) -> Any:
    return program(sys.executable, *COMMAND, "server", str(count), *hanging)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs. One that has ended may wait for the system to take its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def pids_of(running: Program) -> list[int]:
    pids: list[int] = json.loads(await running.line())
    return pids


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
@pytest.mark.parametrize("hanging", [[], ["one"]])
async def test_processes_end_with_a_server_that_is_killed(hanging: list[str]) -> None:
    async with server(2, *hanging) as running:
        pids = await pids_of(running)
        assert all(map(is_alive, pids))
        running._process.kill()
        await running.ended()
        await until(lambda: not any(map(is_alive, pids)))


async def test_ctrl_c_reaches_the_server_alone_which_stops_in_good_order() -> None:
    async with server(2) as running:
        pids = await pids_of(running)
        os.killpg(running._process.pid, signal.SIGINT)
        code, out, err = await running.ended()
        assert (code, err) == (0, "")
        assert out.splitlines() == [json.dumps(pids), "done"]
        assert not any(map(is_alive, pids))
