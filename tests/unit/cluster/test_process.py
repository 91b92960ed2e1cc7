"""A `Process` with small programs in the place of servers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from jetstream.cluster.members import Change, Member
from jetstream.cluster.process import MemberFailed, Process

PATIENCE_S = 20.0
SAY = "import sys, time; print(*sys.argv[1:], flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SAY
Start = Callable[..., Process]


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def small(directory: Path, code: str, environment: dict[str, str]) -> Process:
    """Return a process that runs some code with the arguments of an edge."""
    member = Member("edge", 1, 7001, {"role": "edge"}).changed(
        Change(program=(sys.executable, "-I", "-S", "-c", code), environment=environment)
    )
    return Process(member, directory)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start small programs, and wait until they have written something."""
    started: list[Process] = []

    def start(code: str = SAY, environment: dict[str, str] | None = None) -> Process:
        process = small(tmp_path, code, environment or {})
        started.append(process)
        process.spawn()
        until(process.last_lines)
        return process

    yield start
    for process in started:
        process.kill()


def test_it_gets_its_flags_and_its_log_has_what_it_writes(start: Start, tmp_path: Path) -> None:
    process = start()
    assert process.last_lines() == ["serve --role=edge"]
    assert process.log == tmp_path / "edge-1.log"
    assert process.running
    assert process.expected
    assert (tmp_path / "edge-1.pid").read_text() == f"{process.pid}\n"


def test_without_another_program_it_is_ours(tmp_path: Path) -> None:
    process = Process(Member("relay", 1, 7001, {"port": "7001"}), tmp_path)
    assert process.command()[-4:] == ["-m", "jetstream", "simulate", "--port=7001"]


def test_its_environment_has_no_settings_of_another_server(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JETSTREAM_LOG", "sqlite:elsewhere")
    code = "import os; print(*(f'{k}={v}' for k, v in os.environ.items() if 'JETSTREAM' in k or k == 'MORE'))"
    assert start(code, environment={"MORE": "1"}).last_lines() == ["MORE=1"]


def test_one_that_is_stopped_ends_in_good_order_and_is_not_missed(start: Start) -> None:
    process = start()
    process.stop()
    assert not process.running
    assert not process.expected
    assert process.pid is None
    assert process.how_ended == "it was ended by SIGTERM"
    assert not process.pid_file.exists()
    process.stop()  # of no effect


def test_one_that_does_not_stop_is_killed(start: Start) -> None:
    process = start(STUBBORN)
    process.stop(within_s=0.01)
    assert process.how_ended == "it was ended by SIGKILL"


def test_one_that_is_killed_can_be_started_again(start: Start) -> None:
    process = start()
    first = process.pid
    process.kill()
    assert not process.expected
    assert process.how_ended == "it was ended by SIGKILL"
    process.spawn()
    assert process.pid not in (None, first)
    assert process.how_ended == ""
    until(lambda: len(process.last_lines()) == 2)


def test_one_that_ends_by_itself_is_missed(start: Start) -> None:
    process = start("print('no more'); raise SystemExit(3)")
    until(lambda: not process.running)
    assert process.expected
    assert process.how_ended == "it ended with status 3"


@pytest.mark.skipif(sys.platform != "linux", reason="it is read from /proc")
def test_one_that_is_frozen_does_nothing_until_it_is_thawed(start: Start) -> None:
    process = start(
        "import itertools, time\nfor n in itertools.count(): print(n, flush=True); time.sleep(0.001)"
    )
    process.freeze()
    until(lambda: process.frozen)
    size = process.log.stat().st_size
    assert process.running
    process.thaw()
    until(lambda: process.log.stat().st_size > size)
    assert not process.frozen


def test_one_that_is_frozen_can_be_stopped(start: Start) -> None:
    process = start()
    process.freeze()
    process.stop()
    assert process.how_ended == "it was ended by SIGTERM"


def test_a_program_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    process = Process(Member("edge", 1, 7001, program=(str(tmp_path / "none"),)), tmp_path)
    with pytest.raises(MemberFailed, match=r"edge-1 cannot be started: .*No such file"):
        process.spawn()


def test_a_log_that_is_too_long_is_moved_and_goes_on(start: Start) -> None:
    process = start(
        "import sys\nprint('old', flush=True)\nfor line in sys.stdin: pass\nimport time; time.sleep(60)"
    )
    process.bound_log(bytes_max=100)
    assert process.last_lines() == ["old"]
    process.bound_log(bytes_max=3)
    assert process.last_lines() == []
    assert process.log.with_suffix(".log.1").read_text() == "old\n"


def test_of_a_long_log_the_last_lines_are_shown(tmp_path: Path) -> None:
    process = Process(Member("edge", 1, 7001), tmp_path)
    assert process.last_lines() == []
    process.log.write_text("".join(f"{n} {'x' * 1000}\n\n" for n in range(20)))
    assert [line.split()[0] for line in process.last_lines(3)] == ["17", "18", "19"]
    assert max(map(len, process.last_lines())) == 400


ORPHAN = """
import sys, time
from pathlib import Path
from jetstream.cluster.members import Member
from jetstream.cluster.process import Process
process = Process(Member("edge", 1, 7001, program=("sleep", "60")), Path(sys.argv[1]))
process.command = lambda: ["sleep", "60"]
process.spawn()
print(process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_it_ends_when_this_process_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ORPHAN, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    until(lambda: not _lives(pid))


def _lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
