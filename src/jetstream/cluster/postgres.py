"""A server of PostgreSQL, of the programs that the machine has: created, killed, promoted, copied.

PostgreSQL refuses to run as root. Where this process is root, it runs as the user `nobody`, who owns its
directory.
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

PROGRAMS: Final = ("initdb", "postgres", "pg_basebackup", "pg_ctl", "pg_isready")
VERSIONS: Final = Path("/usr/lib/postgresql")  # where Debian has one directory for each
OLDEST: Final = 15
USER: Final = "nobody"  # as whom it runs where this process is root
START_S: Final = 60.0
_COPY_S: Final = 120.0
_LOOK_S: Final = 0.05
_MEMORY_LINE: Final = 6  # of postmaster.pid: the key and the ID of a segment of shared memory
_IPC_RMID: Final = 0
_INITDB: Final = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
_ACCESS: Final = f"host replication all {HOST}/32 trust\n"


class PostgresMissing(JetstreamError):
    """The machine has no PostgreSQL that can be used."""

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
    command = [str(directory / "postgres"), "--version"]
    text = subprocess.run(command, check=False, capture_output=True, text=True).stdout  # noqa: S603
    found = re.search(r"\d+", text)
    return int(found[0]) if found else 0


class Postgres(Process):
    """A server of PostgreSQL. The settings of the member are in its `postgresql.conf`.

    So `ALTER SYSTEM` may change them, and a copy has them, too. `binaries` has PostgreSQL's programs.
    """

    stop_signal = signal.SIGINT  # at once, but in good order: sessions are closed
    orphan_signal = signal.SIGQUIT  # its own processes end, too

    def __init__(self, member: Member, directory: Path, binaries: Path) -> None:
        super().__init__(member, directory)
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
        """Whether it follows another server, or does when it is started."""
        return (self.data / "standby.signal").exists()

    def follows(self, primary: Postgres) -> bool:
        """Tell whether it is a standby of another server, where that listens now."""
        return self.is_standby and f"port={primary.port} " in (self.data / "postgresql.auto.conf").read_text()

    @property
    def timeline(self) -> int:
        """The number of its timeline: 1, and one more with each promotion."""
        names = [path.name for path in self.data.glob("pg_wal/*.history")]
        return max((int(name[:8], 16) for name in names), default=1)

    def create(self) -> None:
        """Make a new primary. Raises MemberFailed."""
        _make(self.home)
        self.run("initdb", "-D", str(self.data), *_INITDB)
        _append(self.data / "pg_hba.conf", _ACCESS)
        _append(self.data / "postgresql.conf", configuration(self.member.settings))

    def copy(self, primary: Postgres) -> None:
        """Make it a standby of another server, which runs. What it had is removed. Raises MemberFailed."""
        _make(self.home)
        _empty(self.data)
        self.run(
            "pg_basebackup", "-h", HOST, "-p", str(primary.port), "-U", "postgres", "-D", str(self.data),
            "-R", "-X", "stream", "-c", "fast", "--no-sync", within_s=_COPY_S,
        )  # fmt: skip

    def promote(self) -> None:
        """Make a standby that runs the primary, and wait until it is. Raises MemberFailed."""
        self.run("pg_ctl", "-D", str(self.data), "-w", "promote")

    def command(self) -> list[str]:
        """Return the command line."""
        here = ("-D", str(self.data), "-h", HOST, "-p", str(self.port), "-k", "")
        name = f"cluster_name={self.name}"  # by which the primary knows its standby
        return [str(self.binaries / "postgres"), *here, "-c", name, *self.member.arguments]

    def spawn(self) -> None:
        """Start it, and do not wait until it is ready. It ends with the thread that calls.

        Raises MemberFailed if it cannot be started.
        """
        self._forget_last()
        self._popen(self.command(), {**os.environ, **self.member.environment}, cwd=self.home, **_as_user())

    def start(self) -> None:
        """Start it, and wait until it takes connections. Raises MemberFailed."""
        self.spawn()
        self.wait_ready()

    @property
    def accepts(self) -> bool:
        """Whether it takes connections."""
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
        """Wait until it takes connections. Raises MemberFailed."""
        until = time.monotonic() + within_s
        while not self.accepts:
            if not self.running or time.monotonic() > until:
                why = self.how_ended or f"it takes no connections after {within_s:g} s"
                raise MemberFailed(f"{self.name}: {why}; its log ends: {' | '.join(self.last_lines())}")
            time.sleep(_LOOK_S)

    def kill(self) -> None:
        """Kill it with all its sessions, and wait for their end."""
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
        """Return the IDs of its processes: each session is one, and their working directory is the data."""
        own = super()._pids()
        return [*own, *(pid for pid in _processes() if pid not in own and _runs_in(pid, self.data))]

    def _forget_last(self) -> None:
        """Remove what a killed server leaves: shared memory, and a lock with an ID that may be reused."""
        lock = self.data / "postmaster.pid"
        if self._process is None or self._pids() or not lock.exists():
            return
        with suppress(OSError, ValueError, IndexError, AttributeError):
            _, memory = lock.read_text().splitlines()[_MEMORY_LINE].split()
            ctypes.CDLL(None).shmctl(int(memory), _IPC_RMID, None)
        lock.unlink()

    def run(self, name: str, *arguments: str, within_s: float = START_S) -> None:
        """Run one of PostgreSQL's programs as its user. Raises MemberFailed, with what it wrote."""
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
    """Return settings as lines of `postgresql.conf`."""
    texts = {name: str(value).replace("'", "''") for name, value in settings.items()}
    return "".join(f"{name} = '{text}'\n" for name, text in texts.items())


def check_access(directory: Path) -> None:
    """Raise MemberFailed if this process is root, and PostgreSQL's user cannot reach a directory."""
    if os.geteuid() != 0:
        return
    for each in (directory, *directory.parents):
        if not each.stat().st_mode & 0o001:
            raise MemberFailed(
                f"{each} is closed to the user {USER}, as whom PostgreSQL runs because this command is root:"
                " choose another directory, such as one in /tmp"
            )


def _as_user() -> dict[str, Any]:
    """Return the arguments of `subprocess` with which PostgreSQL is not root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(USER)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _make(home: Path) -> None:
    """Make the directory of a server, for the user as whom it runs."""
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
    with file.open("a") as open_file:
        open_file.write(text)


def _processes() -> list[int]:
    """Return the IDs of all processes; without /proc, none."""
    with suppress(OSError):
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return []


def _runs_in(pid: int, directory: Path) -> bool:
    """Tell whether the working directory of a process is this one."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == directory
    except OSError:
        return False
