"""What a long-running command needs of its process: event loop, garbage collector, memory, files, signals.

*Garbage collection.* By default CPython's collector runs after every 700 new container objects, and now and
then over all objects. With thousands of connections such a full run stops the event loop for half a second.
Events, frames and connections make no cycles that last. So `tune_gc` makes runs rare and turns full runs off,
and `collect_young` collects young objects before there are very many.

*Memory.* glibc keeps nearly all memory that Python frees. After a flood, `release_memory` gives it back.

*Files.* A subscriber is one open file, so `raise_file_limit` takes all that the system allows.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from jetstream.limits import RuntimeLimits

# Files of Linux: memory in pages, bytes read and written, and a link for each open file.
_STATM: Final = Path("/proc/self/statm")
_IO: Final = Path("/proc/self/io")
_FILES: Final = Path("/proc/self/fd")
# The operation of `prctl(2)` that chooses the signal which this process gets when its parent ends.
_PR_SET_PDEATHSIG: Final = 1
# What systemd and Docker send, and Ctrl-C.
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

Result = TypeVar("Result")

logger = structlog.get_logger(__name__)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, on uvloop where it is installed.

    Raises what the coroutine raises. It makes an event loop, so there must be none in this thread.
    """
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def how_ended(status: int) -> str:
    """Return how a process has ended, for people. `status` is that of `subprocess`.

    `status` is negative for a signal, such as -9, and an exit status otherwise.
    """
    with suppress(ValueError):
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it ended with status {status}"


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of a task group: it is the cause, and fits one line for the operator.

    Groups may be nested: the first error of the first group counts.
    """
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result | None:
    """Return the result of some work; None if an event is set before: then the work is cancelled.

    Raises what the work raises. If both come at the same time, the result counts. Work that is
    cancelled has ended when this returns.
    """
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancel a task, and return once it has ended.

    Whatever the task raises is not raised here. It may have ended already.
    """
    task.cancel()
    await asyncio.wait([task])


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` at the first SIGTERM or SIGINT. A second one ends the process at once.

    For the main thread, with a running event loop. `stop` is called in the event loop, not in a signal
    handler: it may do anything.
    """
    loop = asyncio.get_running_loop()

    def first() -> None:
        """Restore what signals do by default, so that the next one ends the process, and call `stop`."""
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, first)


def reload_on_hangup(reload: Callable[[], None]) -> None:
    """Call `reload` at each SIGHUP, which would else end the process.

    For the main thread, as `stop_on_signals` is. Without this, a terminal that is closed ends the
    server.
    """
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


def end_with_parent() -> None:
    """Have the system kill this process when its parent ends, however that ends. Linux only.

    To be called first thing in a child. A parent that has ended before is not noticed: a control socket
    tells that.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def tune_gc(limits: RuntimeLimits = RuntimeLimits()) -> None:
    """Make garbage collections rare, and exempt what exists already, such as modules, from all of them.

    To be called once, when everything is imported and before connections are made.
    """
    gc.collect()  # garbage of the imports, which would be exempt as well
    gc.freeze()
    gc.set_threshold(*limits.gc_thresholds)


async def collect_young(limits: RuntimeLimits = RuntimeLimits()) -> None:
    """Collect young objects as soon as there are many, until cancelled.

    The collector counts allocations less deallocations. While thousands of connections end and thousands
    begin, that is few, although hundreds of thousands of new objects gather. A run over those takes 40 ms
    and more.
    """
    pause_s, before = limits.young_every_s, 0
    while True:
        await asyncio.sleep(pause_s)
        young = count_young()
        pause_s = next_count_s(pause_s, young - before, limits)
        if young > limits.young_max:
            gc.collect(1)
            young = 0
        before = young


def next_count_s(pause_s: float, grown: int, limits: RuntimeLimits) -> float:
    """Return when to count young objects again, in seconds, after a pause in which so many more were found.

    Counting looks at each of them: with 10,000 subscribers, counting every 20 ms took 2.8 % of the CPU time.
    A server that does nothing wakes up less often, too.
    """
    if grown > limits.young_max // 10:
        return limits.young_every_s
    return min(2 * pause_s, limits.young_pause_max_s)


def count_young() -> int:
    """Return how many young objects the collector has, in one step in which no other thread runs.

    The list of them refers to tuples, too, that other threads are making of a generator. When such a
    thread runs while there is a list, its tuple cannot grow: it raises SystemError. `map` calls both
    functions without a bytecode between them, and another thread can run only between two bytecodes.

    Young are those of generation 0: made since the last run of the collector, and still there.
    """
    return next(map(len, map(gc.get_objects, (0,))))


async def release_memory(
    trim: Callable[[], object],
    resident: Callable[[], int],
    limits: RuntimeLimits = RuntimeLimits(),
) -> None:
    """Give free memory back to the system now and then, while much is in use, until cancelled.

    `trim` gives back what the C library holds. It runs in a thread, because 470 MB take 0.2 s.
    `resident` returns how many bytes of the process are in memory.

    Without it, a server that once had 10,000 subscribers would keep the memory for them for good.
    """
    while True:
        await asyncio.sleep(limits.release_every_s)
        if resident() > limits.release_above_bytes:
            await asyncio.to_thread(trim)


@asynccontextmanager
async def housekeeping(limits: RuntimeLimits = RuntimeLimits()) -> AsyncIterator[None]:
    """Collect young objects and, on Linux with glibc, release memory while the block runs.

    To be entered once in a process, in a running event loop.
    """
    tasks = [asyncio.create_task(collect_young(limits))]
    trim = malloc_trim()
    if trim is not None and _STATM.exists():
        tasks.append(asyncio.create_task(release_memory(trim, resident_bytes, limits)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


def malloc_trim() -> Callable[[], object] | None:
    """Return the function of glibc that gives free memory back to the system; None with another C library.

    What it returns can be called from any thread, and takes no arguments. It returns 1 if memory was
    given back.
    """
    with suppress(AttributeError, OSError, TypeError):
        trim = ctypes.CDLL(None).malloc_trim
        trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
        return partial(trim, 0)
    return None


def resident_bytes() -> int:
    """Return how many bytes of this process are in memory. Linux only.

    Raises OSError elsewhere. Pages that are shared with other processes count as well.
    """
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def written_bytes() -> int | None:
    """Return how many bytes this process has caused to be written to disk; None where that is not known.

    That is `write_bytes` of proc_pid_io(5), since the process began. A page is counted when it becomes
    dirty, so one that is changed twice before it reaches the disk counts once.
    """
    with suppress(OSError, ValueError, StopIteration):
        lines = _IO.read_text().splitlines()
        return int(next(line for line in lines if line.startswith("write_bytes:")).split()[1])
    return None


def open_files() -> int | None:
    """Return how many files this process has open; None where that is not known.

    Linux 6.2 and later tell the number. Elsewhere the files are counted: 1 ms for 2,000 of them.
    """
    with suppress(OSError):
        return _FILES.stat().st_size or len(os.listdir(_FILES))
    return None


class FileShortage(NamedTuple):
    """The limit of open files has no room for as many subscribers as are allowed."""

    # The hard limit of open files as it is.
    limit: int
    # The limit with which all subscribers that are allowed have room, beside the files of the server
    # itself.
    needed: int
    # For how many subscribers there is room.
    subscribers: int

    @property
    def remedy(self) -> str:
        """What an operator can do.

        A part of a sentence, with the three usual ways to raise the limit.
        """
        return (
            f"raise it (`ulimit -Hn {self.needed}`, with systemd LimitNOFILE={self.needed}, with Docker"
            f" --ulimit nofile={self.needed}), or set --max-subscribers {self.subscribers}"
        )

    def warn(self) -> None:
        """Log how many subscribers fit, and what to do."""
        text = (
            "the limit of open files is below what may be needed: there is room for"
            f" {self.subscribers} subscribers; {self.remedy}. `jetstream doctor` checks everything else"
        )
        logger.warning(text, limit=self.limit, needed=self.needed)


def raise_file_limit(
    subscribers_max: int, kept: int, limits: RuntimeLimits = RuntimeLimits()
) -> FileShortage | None:
    """Raise the soft limit of open files to the hard one. Return the shortage, if not all subscribers fit.

    `kept` is how many files the listener keeps free, or an eighth of the limit if that is less.

    `subscribers_max` is how many subscribers this process may have. A limit that is raised is logged.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        logger.info("raised the limit of open files", soft=soft, hard=hard)
    return file_shortage(hard, subscribers_max, kept, limits)


def file_shortage(
    hard: int, subscribers_max: int, kept: int, limits: RuntimeLimits = RuntimeLimits()
) -> FileShortage | None:
    """Return the shortage under a hard limit of open files; None if all subscribers fit.

    What is kept free is not available to subscribers: so the room is the limit without that and without
    the files of the server itself.
    """
    needed = subscribers_max + limits.files_needed
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return None
    return FileShortage(hard, needed, max(hard - min(kept, hard // 8) - limits.files_own, 0))
