"""The settings of the log.

Annotations are values here: cyclopts would look up names in the module of `Settings`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from jetstream.errors import SettingError
from jetstream.roles import Role
from jetstream.settings.declaring import duration, setting, size
from jetstream.settings.values import LogUrl, parse_log_url

# Also of the commands that read or change a log (`cli/log.py`), so they take the same flag and variable.
LOG: Final = setting(
    "LOG",
    "Where the event log is: sqlite:DIRECTORY, or postgresql://USER@HOST/DATABASE. By default it is in the"
    " data directory.",
    parse_log_url,
    n_tokens=1,
    accepts_keys=False,
    metavar="URL",
)


def log_directory(log: LogUrl | None, data_dir: Path) -> Path:
    """Return the directory of the SQLite log. Raises SettingError for a log that is in PostgreSQL.

    Without `--log` it is the data directory. It need not exist.
    """
    if log is None:
        return data_dir
    if log.directory is None:
        raise SettingError("--log", str(log), "is a PostgreSQL database, and this is for logs in SQLite")
    return log.directory


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Part of `Settings`."""

    # What of the server's work this process does. `roles` says which settings have no effect in which
    # role.
    role: Annotated[
        Role,
        setting(
            "ROLE",
            "all: read upstream and serve subscribers. ingest: only read. edge: only serve, from a log that"
            " another process writes.",
        ),
    ] = "all"
    # None: in `data_dir`. An edge must name the same log as the process that writes it.
    log: Annotated[LogUrl | None, LOG] = None
    # Seconds without an append or a heartbeat of the leader, by the monotonic clock of the one that
    # stands by. With a shorter time, a database that is only slow ends more terms
    # (docs/many-machines.md).
    takeover_after: Annotated[
        float,
        duration(
            "TAKEOVER_AFTER",
            "With the log in PostgreSQL: for how long the process that writes it must be silent before"
            " another one takes over.",
        ),
    ] = 3.0
    # Created at the start. Signing keys and the public dictionary are there in any case.
    data_dir: Annotated[
        Path,
        setting(
            "DATA_DIR",
            "Directory of the event log, if --log is not given, and of what else a server keeps.",
            metavar="DIRECTORY",
            show_default=lambda directory: f"./{directory}",
        ),
    ] = Path("./data")
    # Seconds since an event was stored, by the server's clock.
    retention: Annotated[
        float,
        duration("EVENT_TTL", "How long events are kept, such as 90m, 24h or 3d.", alias=["--event-ttl"]),
    ] = 24 * 3600.0
    # Bytes, without the file `jetstream.reserve`. None: only the time bounds the log.
    retention_bytes: Annotated[
        int | None, size("RETENTION_BYTES", "Maximum size of the log; the oldest events are removed.")
    ] = None
    # Seconds. See `clock.SteadyClock`: a step ahead that is a mistake would stamp all later events in
    # the future.
    clock_settle: Annotated[
        float,
        duration("CLOCK_SETTLE", "How long a forward step of the clock must last before it is followed."),
    ] = 300.0
    # `deleted`: an account that has ended. `takendown`: one that its host has taken down, which may be
    # undone; the records do not come back.
    forget: Annotated[
        Literal["none", "deleted", "deleted,takendown"],
        setting("FORGET", "Accounts whose records are erased from the log when they end."),
    ] = "deleted"

    @property
    def log_dir(self) -> Path:
        """The directory of the SQLite log. Raises SettingError for a log that is in PostgreSQL."""
        return log_directory(self.log, self.data_dir)

    @property
    def database(self) -> str | None:
        """The address of the PostgreSQL database of the log, with its password; None: it is in SQLite."""
        return None if self.log is None else self.log.address
