"""The settings of the log.

Annotations are values here: cyclopts would look up names in the module of `Settings`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from jetstream.settings.declaring import duration, setting, size


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Part of `Settings`."""

    data_dir: Annotated[
        Path,
        setting(
            "DATA_DIR",
            "Directory of the event log.",
            metavar="DIRECTORY",
            show_default=lambda directory: f"./{directory}",
        ),
    ] = Path("./data")
    retention: Annotated[
        float,
        duration("EVENT_TTL", "How long events are kept, such as 90m, 24h or 3d.", alias=["--event-ttl"]),
    ] = 24 * 3600.0
    retention_bytes: Annotated[
        int | None, size("RETENTION_BYTES", "Maximum size of the log; the oldest events are removed.")
    ] = None
    clock_settle: Annotated[
        float,
        duration("CLOCK_SETTLE", "How long a forward step of the clock must last before it is followed."),
    ] = 300.0
    forget: Annotated[
        Literal["none", "deleted", "deleted,takendown"],
        setting("FORGET", "Accounts whose records are erased from the log when they end."),
    ] = "deleted"
