"""How this process logs: lines for a person on a terminal, JSON for everything else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

THROTTLE_S: Final = 60.0  # between two lines of one event that another party can cause


def configure(level: str, form: str) -> None:
    """Send every log line to standard error, as `text` or `json`; `auto` asks the terminal."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if text else "iso", utc=not text)
    shared: list[Any] = [structlog.stdlib.add_log_level, stamp]
    renderer: list[Any] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0, sort_keys=False)]
        if text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # Every end of a connection is logged once, by us.
    logging.getLogger("picows").setLevel(logging.CRITICAL)


class Throttled:
    """A logger for what another party can cause: at most one line a minute of each event.

    `omitted` in a line says how many of its kind were left out since the one before. Events are literals, so
    there are few; what varies goes into the fields. Whatever is logged here is counted in a metric as well.
    `clock` gives monotonic seconds.
    """

    def __init__(
        self, logger: Any, *, every_s: float = THROTTLE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._every_s = every_s
        self._clock = clock
        self._logged_at: dict[str, float] = {}  # by event: when its last line was written
        self._omitted: dict[str, int] = {}  # by event: lines left out since then

    def info(self, event: str, **fields: object) -> None:
        """Log at level info."""
        self._log(self._logger.info, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log at level warning."""
        self._log(self._logger.warning, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """Log the error that is being handled, with its traceback."""
        self._log(self._logger.exception, event, fields)

    def _log(self, write: Callable[..., object], event: str, fields: dict[str, object]) -> None:
        now = self._clock()
        at = self._logged_at.get(event)
        if at is not None and now - at < self._every_s:
            self._omitted[event] = self._omitted.get(event, 0) + 1
            return
        self._logged_at[event] = now
        omitted = self._omitted.pop(event, 0)
        write(event, **fields, **({"omitted": omitted} if omitted else {}))
