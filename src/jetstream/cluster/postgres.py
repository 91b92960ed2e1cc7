"""A server of PostgreSQL, of the programs that the machine has: created, killed, promoted, copied.

PostgreSQL refuses to run as root. Where this process is root, it runs as the user `nobody`, who owns
its directory.

Everything blocks in the thread that calls, and `Cluster` calls it in others where that may take long.
Of the two servers of a cluster, one is the primary; the other one follows it by streaming replication,
and commits of the primary wait for it (`members.synchronous`).

It is for tests and demonstrations: connections are trusted, from this machine alone.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from jetstream.cluster.members import HOST, Member, Value
from jetstream.cluster.process import STOP_S, MemberFailed, Process
from jetstream.errors import JetstreamError

# The programs that are used. A directory without one of them is passed over.
PROGRAMS: Final = ("initdb", "postgres", "pg_basebackup", "pg_ctl", "pg_isready")
VERSIONS: Final = Path("/usr/lib/postgresql")  # where Debian has one directory for each
# The oldest major version that can be used, as for a log in PostgreSQL.
OLDEST: Final = 15
# The user as whom it runs where this process is root.
USER: Final = "nobody"
# Seconds for a server to take connections, and for a program of PostgreSQL to end; for a copy, below.
START_S: Final = 60.0
# Seconds for a copy of all data, and between two looks at what is waited for.
_COPY_S: Final = 120.0
_LOOK_S: Final = 0.05
# The line of postmaster.pid with the key and the ID of a segment of shared memory, from 0 on.
_MEMORY_LINE: Final = 6
# A command of `shmctl(2)`: remove the segment.
_IPC_RMID: Final = 0
# A superuser `postgres` without a password. Nothing waits for the disk, as these data are for a
# demonstration.
_INITDB: Final = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
# A line of pg_hba.conf: the standby may connect for replication.
_ACCESS: Final = f"host replication all {HOST}/32 trust\n"


class PostgresMissing(JetstreamError):
    """The machine has no PostgreSQL that can be used.

    `found` says what there is, in a few words, for the text.
    """

    def __init__(self, found: str) -> None:
        self.found = found
        super().__init__(
            f"PostgreSQL {OLDEST} or later is needed: {found} in PATH or in {VERSIONS}/*/bin."
            " Install its server (Debian, Ubuntu: apt install postgresql; Fedora: dnf install"
            " postgresql-server; macOS: brew install postgresql), or add the directory of its programs to"
            " PATH"
        )


def find_binaries(path: str | None = None, versions: Path = VERSIONS) -> Path:
    """Return the directory of PostgreSQL's programs: the one in PATH, else the newest one that Debian has.

    `path` is PATH; by default that of this process. Raises PostgresMissing.

    A version in PATH that is too old does not hide a newer one of Debian.
    """
    old: list[int] = []
    for directory in _directories(path, versions):
        version = _version(directory)
        if version >= OLDEST:
            return directory
        old.append(version)
    raise PostgresMissing(f"there is only version {max(old)}" if old else "there is none")


def _directories(path: str | None, versions: Path) -> Iterator[Path]:
    """Return the directories that have all programs, the best one first."""
    in_path = shutil.which("initdb", path=path)
    of_debian = [each for each in versions.glob("*/bin") if each.parent.name.isdigit()]
    newest_first = sorted(of_debian, key=lambda each: -int(each.parent.name))
    for each in [*([Path(in_path).resolve().parent] if in_path else []), *newest_first]:
        if all((each / name).exists() for name in PROGRAMS):
            yield each


def _version(directory: Path) -> int:
    """Return the major version of the programs in a directory; 0: it does not say."""
    command = [str(directory / "postgres"), "--version"]
    text = subprocess.run(command, check=False, capture_output=True, text=True).stdout  # noqa: S603
    found = re.search(r"\d+", text)
    return int(found[0]) if found else 0


class Postgres(Process):
    """A server of PostgreSQL. The settings of the member are in its `postgresql.conf`.

    So `ALTER SYSTEM` may change them, and a copy has them, too. `binaries` has PostgreSQL's programs.
    """

    # PostgreSQL's "fast" shutdown: sessions are closed, and a checkpoint is written.
    stop_signal = signal.SIGINT
    # Its "immediate" shutdown: unlike SIGKILL, it ends the processes of the sessions, too.
    orphan_signal = signal.SIGQUIT

    def __init__(self, member: Member, directory: Path, binaries: Path) -> None:
        super().__init__(member, directory)
        # The directory of PostgreSQL's programs.
        self.binaries = binaries
        # Its own directory, with its data.
        self.home = directory.resolve() / self.name
        self.data = self.home / "data"

    @property
    def address(self) -> str:
        """Where others reach it: the address of this server alone, for `--log`."""
        return f"postgresql://postgres@{HOST}:{self.port}/postgres"

    @property
    def created(self) -> bool:
        """Whether it has data."""
        return (self.data / "PG_VERSION").exists()

    @property
    def is_standby(self) -> bool:
        """Whether it follows another server, or does when it is started.

        A promotion removes the file that says so.
        """
        return (self.data / "standby.signal").exists()

    def follows(self, primary: Postgres) -> bool:
        """Tell whether it is a standby of another server, where that listens now.

        By its data: a standby of a primary that has another port now must be made again. False without
        data.
        """
        return self.is_standby and f"port={primary.port} " in (self.data / "postgresql.auto.conf").read_text()

    @property
    def timeline(self) -> int:
        """The number of its timeline: 1, and one more with each promotion."""
        names = [path.name for path in self.data.glob("pg_wal/*.history")]
        return max((int(name[:8], 16) for name in names), default=1)

    def create(self) -> None:
        """Make a new primary. Raises MemberFailed.

        Any connection from this machine is trusted. It does not run yet.
        """
        _make(self.home)
        self.run("initdb", "-D", str(self.data), *_INITDB)
        _append(self.data / "pg_hba.conf", _ACCESS)
        _append(self.data / "postgresql.conf", configuration(self.member.settings))

    def copy(self, primary: Postgres) -> None:
        """Make it a standby of another server, which runs. What it had is removed. Raises MemberFailed.

        It must not run, and does not run afterwards: `spawn` starts it as a standby, as pg_basebackup
        has written it down (`-R`).
        """
        _make(self.home)
        _empty(self.data)
        self.run(
            "pg_basebackup", "-h", HOST, "-p", str(primary.port), "-U", "postgres", "-D", str(self.data),
            "-R", "-X", "stream", "-c", "fast", "--no-sync", within_s=_COPY_S,
        )  # fmt: skip

    def promote(self) -> None:
        """Make a standby that runs the primary, and wait until it is. Raises MemberFailed.

        It waits at most as long as pg_ctl does by default, 60 s.
        """
        self.run("pg_ctl", "-D", str(self.data), "-w", "promote")

    def command(self) -> list[str]:
        """Return the command line.

        It listens on this machine only, and has no Unix socket.
        """
        here = ("-D", str(self.data), "-h", HOST, "-p", str(self.port), "-k", "")
        name = f"cluster_name={self.name}"  # by which the primary knows its standby
        return [str(self.binaries / "postgres"), *here, "-c", name, *self.member.arguments]

    def spawn(self) -> None:
        """Start it, and do not wait until it is ready. It ends with the thread that calls.

        Raises MemberFailed if it cannot be started.

        What a killed server has left is removed before.
        """
        self._forget_last()
        self._popen(self.command(), {**os.environ, **self.member.environment}, cwd=self.home, **_as_user())

    def start(self) -> None:
        """Start it, and wait until it takes connections. Raises MemberFailed."""
        self.spawn()
        self.wait_ready()

    @property
    def accepts(self) -> bool:
        """Whether it takes connections.

        It takes some milliseconds, for a program is started. A standby takes connections as well.
        """
        command = [
            str(self.binaries / "pg_isready"),
            "-q",
            "-h",
            HOST,
            "-p",
            str(self.port),
            "-U",
            "postgres",
        ]
        return subprocess.run(command, check=False).returncode == 0  # noqa: S603 - a program of PostgreSQL

    def wait_ready(self, within_s: float = START_S) -> None:
        """Wait until it takes connections. Raises MemberFailed.

        It is raised at once when the server ends.
        """
        until = time.monotonic() + within_s
        while not self.accepts:
            if not self.running or time.monotonic() > until:
                why = self.how_ended or f"it takes no connections after {within_s:g} s"
                raise MemberFailed(f"{self.name}: {why}; its log ends: {' | '.join(self.last_lines())}")
            time.sleep(_LOOK_S)

    def kill(self) -> None:
        """Kill it with all its sessions, and wait for their end.

        The sessions are processes of their own, which outlive the first one for a moment.
        """
        pids = self._pids()
        super().kill()
        while any(_runs_in(pid, self.data) for pid in pids):
            time.sleep(_LOOK_S)
        self._forget_last()

    def stop(self, within_s: float = STOP_S) -> None:
        """End it in good order, and wait for that; kill it if it takes longer."""
        super().stop(within_s)
        self._forget_last()

    def _pids(self) -> list[int]:
        """Return the IDs of its processes: each session is one, and their working directory is the data.

        Without /proc, it is the first one alone.
        """
        own = super()._pids()
        return [*own, *(pid for pid in _processes() if pid not in own and _runs_in(pid, self.data))]

    def _forget_last(self) -> None:
        """Remove what a killed server leaves: shared memory, and a lock with an ID that may be reused.

        Without this, PostgreSQL may refuse to start: another process has the ID in the lock, or the
        memory is in use as it seems. Nothing happens while one of its processes runs, or if this object
        has not started it.
        """
        lock = self.data / "postmaster.pid"
        if self._process is None or self._pids() or not lock.exists():
            return
        with suppress(OSError, ValueError, IndexError, AttributeError):
            _, memory = lock.read_text().splitlines()[_MEMORY_LINE].split()
            ctypes.CDLL(None).shmctl(int(memory), _IPC_RMID, None)
        lock.unlink()

    def run(self, name: str, *arguments: str, within_s: float = START_S) -> None:
        """Run one of PostgreSQL's programs as its user. Raises MemberFailed, with what it wrote.

        `name` is one of `PROGRAMS`. It is killed after `within_s` seconds.
        """
        command = [str(self.binaries / name), *arguments]
        try:
            done = subprocess.run(  # noqa: S603 - a program of PostgreSQL
                command,
                check=False,
                capture_output=True,
                text=True,
                cwd=self.home,
                timeout=within_s,
                **_as_user(),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MemberFailed(f"{self.name}: {name} failed: {error}") from error
        if done.returncode != 0:
            raise MemberFailed(f"{self.name}: {name} failed: {' '.join(done.stderr.split())}")


def configuration(settings: Mapping[str, Value]) -> str:
    """Return settings as lines of `postgresql.conf`.

    A quote in a value is doubled, as PostgreSQL reads it.
    """
    texts = {name: str(value).replace("'", "''") for name, value in settings.items()}
    return "".join(f"{name} = '{text}'\n" for name, text in texts.items())


def check_access(directory: Path) -> None:
    """Raise MemberFailed if this process is root, and PostgreSQL's user cannot reach a directory.

    A directory in a home directory is mostly closed to others.
    """
    if os.geteuid() != 0:
        return
    for each in (directory, *directory.parents):
        if not each.stat().st_mode & 0o001:
            raise MemberFailed(
                f"{each} is closed to the user {USER}, as whom PostgreSQL runs because this command is root:"
                " choose another directory, such as one in /tmp"
            )


def _as_user() -> dict[str, Any]:
    """Return the arguments of `subprocess` with which PostgreSQL is not root.

    Empty if this process is not root: then PostgreSQL runs as the same user.
    """
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(USER)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _make(home: Path) -> None:
    """Make the directory of a server, for the user as whom it runs.

    Its parents are made as well. PostgreSQL refuses data that others may read, so only that user may
    enter it.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() == 0:
        user = pwd.getpwnam(USER)
        os.chown(home, user.pw_uid, user.pw_gid)


def _empty(data: Path) -> None:
    """Remove what a directory has, and not itself: by that, PostgreSQL finds its former shared memory."""
    for each in data.glob("*"):
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()


def _append(file: Path, text: str) -> None:
    """Add text at the end of a file. Raises OSError."""
    with file.open("a") as open_file:
        open_file.write(text)


def _processes() -> list[int]:
    """Return the IDs of all processes; without /proc, none."""
    with suppress(OSError):
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return []


def _runs_in(pid: int, directory: Path) -> bool:
    """Tell whether the working directory of a process is this one.

    False without /proc, and for a process that has ended or belongs to another user.
    """
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == directory
    except OSError:
        return False
