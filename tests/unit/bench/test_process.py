from __future__ import annotations

import os
import time

import pytest

from jetstream.bench import process

GONE = 2**22 + 1  # above the largest process id of Linux


def test_cpu_time_is_what_the_process_itself_reads() -> None:
    assert process.cpu_s(os.getpid()) == pytest.approx(time.process_time(), abs=0.1)


def test_memory_is_at_most_what_it_was_at_most() -> None:
    assert 0 < process.memory_bytes(os.getpid()) <= process.memory_bytes(os.getpid(), "VmHWM")


def test_waiting_only_grows() -> None:
    before = process.waited_s(os.getpid())
    assert 0 <= before <= process.waited_s(os.getpid())


def test_a_process_that_is_gone_is_an_error() -> None:
    with pytest.raises(OSError, match="No such file"):
        process.cpu_s(GONE)
    with pytest.raises(OSError, match="No such file"):
        process.memory_bytes(GONE)
