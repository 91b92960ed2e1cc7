"""One process of a cluster: started, stopped, killed, frozen, and started again under the same name.

Everything here returns at once, or waits for a process in the thread that calls. What it writes is in
`NAME.log` of the directory of the cluster, and its ID in `NAME.pid` while it runs.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from jetstream.cluster.members import HOST, Member
from jetstream.errors import JetstreamError
from jetstream.runtime import how_ended

# `-P` keeps Python from importing what lies in the working directory.
JETSTREAM: Final = (sys.executable, "-P", "-m", "jetstream")
# The subcommand for each kind; PostgreSQL has a command line of its own.
_COMMANDS: Final = {"relay": "simulate", "ingest": "serve", "edge": "serve"}
# Bytes of one log file; the one before it is kept as well.
LOG_BYTES_MAX: Final = 16 << 20
# Seconds after which a process that was told to end is killed.
STOP_S: Final = 15.0
# Bytes at the end of a log that are read for an error, and characters of each of its lines.
_LAST_BYTES: Final = 8 << 10
_LAST_CHARS: Final = 400
# The operation of `prctl(2)` that chooses the signal which a process gets when the thread that has started
# it ends.
_PR_SET_PDEATHSIG: Final = 1


class MemberFailed(JetstreamError):
    """A process of the cluster does not do what was asked of it.

    Its text names the process, and mostly has the end of its log.
    """


class Process:
    """A process of a cluster, and those that take its place. Not for several threads at once."""

    # What ends it in good order, and what the system sends it when the thread that started it ends.
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGKILL

    def __init__(self, member: Member, directory: Path) -> None:
        # What it is and how it is started; it never changes. Files of the process are in the directory.
        self.member = member
        self.directory = directory
        # The present process, or the last one; None: it was never started.
        self._process: subprocess.Popen[bytes] | None = None
        # Whether it is to run: from `spawn` until `stop` or `kill`.
        self.expected = False

    @property
    def name(self) -> str:
        """Its name, such as `edge-2`."""
        return self.member.name

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.member.port

    @property
    def address(self) -> str:
        """Where others reach it."""
        return f"http://{HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """The file of what it writes."""
        return self.directory / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        """The file that has its ID while it runs.

        For people and tests, who kill the process by it. Nothing here reads it.
        """
        return self.directory / f"{self.name}.pid"

    @property
    def pid(self) -> int | None:
        """The ID of the present process; None: there is none."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        """Whether it runs, frozen or not.

        A process that has ended is reaped by this.
        """
        return self._process is not None and self._process.poll() is None

    @property
    def frozen(self) -> bool:
        """Whether it was stopped where it is, by `freeze` or by somebody else. Linux only.

        By the third field of /proc/PID/stat: see proc_pid_stat(5).
        """
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    @property
    def how_ended(self) -> str:
        """How the last process has ended, for people; empty: it runs, or was never started."""
        if self._process is None or self.running:
            return ""
        return how_ended(self._process.returncode)

    def command(self) -> list[str]:
        """Return the command line.

        It is shown to operators as well, who may start a process by hand.
        """
        return [*(self.member.program or JETSTREAM), _COMMANDS[self.member.kind], *self.member.flags()]

    def spawn(self) -> None:
        """Start it, and do not wait until it is ready. It ends with the thread that calls.

        Raises MemberFailed if it cannot be started.
        """
        self._popen(self.command(), {**_environment(), **self.member.environment})

    def _popen(self, command: Sequence[str], environment: Mapping[str, str], **more: Any) -> None:
        """Start a command, with its output added to the log, and write down its ID. Raises MemberFailed.

        `more` are further arguments of `subprocess.Popen`. It has a session of its own, and dies with
        this thread.
        """
        assert not self.running, f"{self.name} runs"
        with self.log.open("ab") as log:
            try:
                # What is called in the child is bound before: it takes no lock that another thread may have.
                self._process = subprocess.Popen(  # noqa: S603 - our own command
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in a terminal is for this process only
                    preexec_fn=_ending_with_thread(self.orphan_signal),  # noqa: PLW1509
                    **more,
                )
            except OSError as error:
                raise MemberFailed(f"{self.name} cannot be started: {error}") from error
        self.expected = True
        self.pid_file.write_text(f"{self._process.pid}\n")

    def stop(self, within_s: float = STOP_S) -> None:
        """End it in good order, and wait for that; kill it if it takes longer.

        A frozen process is thawed, so that it can act on the signal. Without a process, only the file
        with its ID is removed.
        """
        self.expected = False
        if self._process is not None and self.running:
            self._process.send_signal(self.stop_signal)
            self.thaw()
            try:
                self._process.wait(within_s)
            except subprocess.TimeoutExpired:
                self.kill()
        self.pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """Kill it, and wait for its end.

        A frozen process is killed as well. Nothing happens if none was started.
        """
        self.expected = False
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self.pid_file.unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stop it where it is: it does nothing, and keeps its connections."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes. One that has ended meanwhile is passed over."""
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _pids(self) -> list[int]:
        """Return the IDs of its processes, the first one first."""
        return [] if self.pid is None else [self.pid]

    def last_lines(self, most: int = 5) -> list[str]:
        """Return the end of what it has written.

        `most` is how many lines; empty ones are left out. Empty: there is no log, or nothing in it.
        """
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _LAST_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
            return [line.strip()[:_LAST_CHARS] for line in lines if line.strip()][-most:]
        return []

    def bound_log(self, bytes_max: int = LOG_BYTES_MAX) -> None:
        """Move a log that is too long to `NAME.log.1`, over the one before. To be called now and then.

        The process has its file open, so that is copied and emptied. A line that is written in between is
        lost.
        """
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > bytes_max:
                shutil.copyfile(self.log, self.log.with_suffix(".log.1"))
                os.truncate(self.log, 0)


def _environment() -> dict[str, str]:
    """Return the environment of a process: without settings that are meant for another server.

    `JETSTREAM_…` are variables of settings: a developer may have some for a server of their own.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("JETSTREAM_")}


def _ending_with_thread(number: signal.Signals) -> Callable[[], None] | None:
    """Return what has the system signal a child when this thread ends, however that ends. Linux only.

    What it returns is called in the child before the program is executed. None: this system has no
    `prctl`.
    """
    try:
        prctl = ctypes.CDLL(None).prctl
    except (AttributeError, OSError):
        return None

    def call() -> None:
        """Ask for the signal. The setting survives the execution of the program."""
        prctl(_PR_SET_PDEATHSIG, int(number))

    return call
