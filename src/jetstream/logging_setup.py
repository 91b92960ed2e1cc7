"""Logging: text lines on a terminal, JSON elsewhere, and a logger that is throttled.

A log line has an event, which is a literal, and fields, which vary. There is one for each change of
state and one for the end of each connection, but none for an event of the firehose.

    structlog.get_logger ─▶ (Throttled) ─▶ level, time, process ─▶ text or JSON ─▶ standard error

Libraries that use `logging` end in the same place. `configure` is called once by each command.
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
    """Let a module seem not to be installed.

    An import of it raises ImportError while the block runs. What was imported before is there again
    afterwards.
    """
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

# Seconds between two lines of the same event of a `Throttled`.
THROTTLE_S: Final = 60.0
# Fields of our own text, which may have several lines. They are not escaped.
_OWN_FIELDS: Final = ("event", "exception", "stack")


def configure(level: str, form: str, *, process: str | None = None, terminal: bool | None = None) -> None:
    """Write log lines to standard error, as `text` or `json`; `auto` is text if that is a terminal.

    `process` is a field of each line, where a server has several. `terminal` tells whether lines go to
    one; None: they do if standard error is one.

    `level` is a name such as `info`. Text has the local time of day, JSON the full time in UTC. Levels
    below `warning` of asyncio are never shown. A second call replaces what the first one has set, but
    for loggers that were used already.
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
    """Escape what a terminal would obey in the fields of a log line: another party may have written them.

    That is a processor of structlog: it is given the fields of a line and returns them.
    """
    return {name: value if name in _OWN_FIELDS else _escaped(value) for name, value in event.items()}


def _escaped(value: object) -> object:
    """Return a value as it may be shown: a text with an unprintable character has escapes for all of them."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return value.encode("unicode_escape").decode()


def _name(process: str, _logger: object, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Add the process to a log line.

    A processor of structlog. `process` is bound by `configure`.
    """
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
        # A logger of structlog, perhaps with bound fields.
        self._logger = logger
        self._every_s = every_s
        self._clock = clock
        # When the last line of each event was written, in monotonic seconds.
        self._logged_at: dict[str, float] = {}
        # Lines of each event that were left out since then; removed when the next line is written.
        self._omitted: dict[str, _Omitted] = {}
        # What this one was bound from: it tells what was omitted, as long as it is there.
        self._origin: Throttled | None = None
        # `bind` makes copies, which are not among them: they share the two dictionaries of this one.
        with _changing:
            _all.add(self)

    def bind(self, **fields: object) -> Throttled:
        """Return a logger with more fields, which shares the throttle of this one.

        So one event has one line a minute, whatever its fields are: a hundred upstreams that fail in
        the same way have one line.
        """
        bound = copy(self)
        bound._logger, bound._origin = self._logger.bind(**fields), self  # noqa: SLF001 - of this class
        return bound

    def info(self, event: str, **fields: object) -> None:
        """Log at level info.

        If the event was logged within the last minute, the line is left out, and counted.
        """
        self._log(self._logger.info, self._logger.info, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log at level warning.

        An event has one throttle, whatever its level is.
        """
        self._log(self._logger.warning, self._logger.warning, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """Log the exception that is being handled, with its traceback.

        A line that `tell_omitted` writes has none: to keep a traceback is to keep what its frames refer to.
        """
        self._log(self._logger.exception, self._logger.error, event, fields)

    def tell(self, *, waiting: bool = True) -> None:
        """Write the newest line of each event that was left out. With `waiting`, once its minute is over.

        Called by `tell_omitted`, for all loggers of the process.
        """
        now = self._clock()
        for event, omitted in list(self._omitted.items()):
            if not waiting or self._is_due(event, now):
                fields = {**omitted.fields, "ago_s": round(now - omitted.at, 1)}
                self._write(omitted.write, event, fields, omitted.lines - 1, now)

    def _log(self, write: _Write, write_later: _Write, event: str, fields: Mapping[str, object]) -> None:
        """Write a line now if its event is due, else keep it as the newest one that was left out.

        `write` writes it now, `write_later` what `tell` writes of it. The fields are kept until then,
        and what they refer to: so they should be numbers and texts.
        """
        now, omitted = self._clock(), self._omitted.get(event)
        count = omitted.lines if omitted else 0
        if self._is_due(event, now):
            self._write(write, event, fields, count, now)
        else:
            self._omitted[event] = _Omitted(write_later, fields, now, count + 1)

    def _is_due(self, event: str, now: float) -> bool:
        """Tell whether a line of an event may be written: none was, or its minute is over."""
        at = self._logged_at.get(event)
        return at is None or now - at >= self._every_s

    def _write(
        self, write: _Write, event: str, fields: Mapping[str, object], omitted: int, now: float
    ) -> None:
        """Write a line. If others were left out since the one before, `omitted` says how many."""
        self._logged_at[event] = now
        self._omitted.pop(event, None)
        write(event, **fields, **({"omitted": omitted} if omitted else {}))


# A method of a logger: it takes the event and its fields.
_Write = Callable[..., object]


class _Omitted(NamedTuple):
    """Lines of an event that were left out."""

    write: _Write
    # The fields of the newest, and when it was to be written in monotonic seconds.
    fields: Mapping[str, object]
    at: float  # when that was to be written
    # How many were left out, with this one.
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
