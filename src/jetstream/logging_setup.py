"""Logging: text lines on a terminal, JSON elsewhere, and a logger that is throttled.

A log line has an event, which is a literal, and fields, which vary. There is one for each change of state and
one for the end of each connection, but none for an event of the firehose.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import partial
from threading import Lock
from typing import Any, Final, NamedTuple
from weakref import WeakSet


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Let a module seem not to be installed."""
    known = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if known is not None:
            sys.modules[module] = known


# structlog loads rich if it can, for tracebacks in colour: 3 MiB of a server, which writes plain ones. So the
# command line imports this module before any other that needs structlog.
with _hidden("rich"):
    import structlog

THROTTLE_S: Final = 60.0  # between two lines of the same event
_OWN_FIELDS: Final = ("event", "exception", "stack")  # which may have several lines


def configure(level: str, form: str, *, process: str | None = None, terminal: bool | None = None) -> None:
    """Write log lines to standard error, as `text` or `json`; `auto` is text if that is a terminal.

    `process` is a field of each line, where a server has several. `terminal` tells whether lines go to one;
    None: they do if standard error is one.
    """
    terminal = sys.stderr.isatty() if terminal is None else terminal
    text = form == "text" or (form == "auto" and terminal)
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if text else "iso", utc=not text)
    shared: list[Any] = [structlog.stdlib.add_log_level, stamp]
    if process is not None:
        shared.append(partial(_name, process))
    renderer: list[Any] = (
        [_escape_controls, structlog.dev.ConsoleRenderer(colors=terminal, pad_event_to=0, sort_keys=False)]
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


def _escape_controls(_logger: object, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Escape what a terminal would obey in the fields of a log line: another party may have written them."""
    return {name: value if name in _OWN_FIELDS else _escaped(value) for name, value in event.items()}


def _escaped(value: object) -> object:
    if not isinstance(value, str) or value.isprintable():
        return value
    return value.encode("unicode_escape").decode()


def _name(process: str, _logger: object, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Add the process to a log line."""
    return {**event, "process": process}


class Throttled:
    """A logger for events that a client or an upstream can cause: at most one line a minute for each.

    The first line is written at once. Those that follow within a minute are left out, up to the end of that
    minute. Then either the next line comes first, or `tell_omitted` writes the newest that was left out: its
    field `ago_s` is how many seconds ago that was. The field `omitted` of a line is how many others were left
    out since the one before.

    Events are literals, so the state is bounded. What is logged here is counted in a metric as well. `clock`
    gives monotonic seconds.
    """

    def __init__(
        self, logger: Any, *, every_s: float = THROTTLE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._every_s = every_s
        self._clock = clock
        self._logged_at: dict[str, float] = {}  # when the last line of each event was written
        self._omitted: dict[str, _Omitted] = {}  # lines of each event that were left out since then
        # What this one was bound from: it tells what was omitted, as long as it is there.
        self._origin: Throttled | None = None
        with _changing:
            _all.add(self)

    def bind(self, **fields: object) -> Throttled:
        """Return a logger with more fields, which shares the throttle of this one."""
        bound = copy(self)
        bound._logger, bound._origin = self._logger.bind(**fields), self  # noqa: SLF001 - of this class
        return bound

    def info(self, event: str, **fields: object) -> None:
        """Log at level info."""
        self._log(self._logger.info, self._logger.info, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log at level warning."""
        self._log(self._logger.warning, self._logger.warning, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """Log the exception that is being handled, with its traceback.

        A line that `tell_omitted` writes has none: to keep a traceback is to keep what its frames refer to.
        """
        self._log(self._logger.exception, self._logger.error, event, fields)

    def tell(self, *, waiting: bool = True) -> None:
        """Write the newest line of each event that was left out. With `waiting`, once its minute is over."""
        now = self._clock()
        for event, omitted in list(self._omitted.items()):
            if not waiting or self._is_due(event, now):
                fields = {**omitted.fields, "ago_s": round(now - omitted.at, 1)}
                self._write(omitted.write, event, fields, omitted.lines - 1, now)

    def _log(self, write: _Write, write_later: _Write, event: str, fields: Mapping[str, object]) -> None:
        now, omitted = self._clock(), self._omitted.get(event)
        count = omitted.lines if omitted else 0
        if self._is_due(event, now):
            self._write(write, event, fields, count, now)
        else:
            self._omitted[event] = _Omitted(write_later, fields, now, count + 1)

    def _is_due(self, event: str, now: float) -> bool:
        at = self._logged_at.get(event)
        return at is None or now - at >= self._every_s

    def _write(
        self, write: _Write, event: str, fields: Mapping[str, object], omitted: int, now: float
    ) -> None:
        self._logged_at[event] = now
        self._omitted.pop(event, None)
        write(event, **fields, **({"omitted": omitted} if omitted else {}))


_Write = Callable[..., object]


class _Omitted(NamedTuple):
    """Lines of an event that were left out."""

    write: _Write
    fields: Mapping[str, object]  # of the newest
    at: float  # when that was to be written
    lines: int


# All throttled loggers of the process, as logging itself is of the process.
_all: Final[WeakSet[Throttled]] = WeakSet()
_changing: Final = Lock()  # a log is opened in a thread, while another server of the process runs


def tell_omitted(*, waiting: bool = True) -> None:
    """Write the lines of bursts whose minute is over: the next line of such an event may never come.

    To be called every second or so. Without `waiting`, write all: at the end of the process.
    """
    with _changing:
        every = list(_all)
    for each in every:
        each.tell(waiting=waiting)
