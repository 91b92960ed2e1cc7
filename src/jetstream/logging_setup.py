"""Logging: text lines on a terminal, JSON elsewhere, and a logger that is throttled.

A log line has an event, which is a literal, and fields, which vary. There is one for each change of state and
one for the end of each connection, but none for an event of the firehose.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

THROTTLE_S: Final = 60.0  # between two lines of the same event


def configure(level: str, form: str) -> None:
    """Write log lines to standard error, as `text` or `json`; `auto` is text if that is a terminal."""
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
    # It logs the end of each connection, which this package logs as well.
    logging.getLogger("picows").setLevel(logging.CRITICAL)


class Throttled:
    """A logger for events that a client or an upstream can cause: at most one line a minute for each.

    The field `omitted` of a line is the number of lines that were left out since the one before. Events are
    literals, so the state is bounded. What is logged here is counted in a metric as well. `clock` gives
    monotonic seconds.
    """

    def __init__(
        self, logger: Any, *, every_s: float = THROTTLE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._every_s = every_s
        self._clock = clock
        self._logged_at: dict[str, float] = {}  # when the last line of each event was written
        self._omitted: dict[str, int] = {}  # lines of each event that were left out since then

    def info(self, event: str, **fields: object) -> None:
        """Log at level info."""
        self._log(self._logger.info, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log at level warning."""
        self._log(self._logger.warning, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """Log the exception that is being handled, with its traceback."""
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
