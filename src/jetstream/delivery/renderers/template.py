"""`TemplateRenderer`: a wire whose events are a template per kind, filled in one fixed order.

The values of an event are JSON text already (see `model.event`), so rendering is one `%` per event: 0.2 µs.
Values are passed by position. By name the same takes three times as long. A wire says in which order: it is
that of its own keys. Where kinds differ in it, a column is named more than once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, itemgetter, mod
from typing import Any, Final

from jetstream.model.batch import Batch
from jetstream.model.event import KIND_NAMES

# `%.0b` and `%.0a` take a value and write nothing, so that templates of all kinds take the same values.
NO_VALUE: Final = b"%.0b"
_NO_NUMBER: Final = b"%.0a"

# The order of the classic and the v1 wire.
COLUMNS: Final = ("dids", "times", "revs", "collections", "rkeys", "bodies", "cids")
_START: Final = b'{"did":"%b","time_us":%d,'
_PATH: Final = b'"collection":"%b","rkey":"%b"'
_NO_PATH: Final = 3 * NO_VALUE

# What may follow the path of a commit.
RECORD_AND_CID: Final = b',"record":%b,"cid":"%b"'
RECORD: Final = b',"record":%b' + NO_VALUE
NO_RECORD: Final = 2 * NO_VALUE


class TemplateRenderer:
    """Renders each event with the template of its kind, and declines kinds that have none.

    A template takes the values of `columns` in their order. These are names of columns of `Batch`, where
    `times` are numbers. `last` makes the values of the last column of what it is given.
    """

    def __init__(
        self,
        name: str,
        templates: Mapping[bytes, bytes],
        columns: Sequence[str] = COLUMNS,
        last: Callable[[list[Any]], list[Any]] | None = None,
        *,
        heartbeat: bytes = b"",
        heartbeat_s: int = 0,
    ) -> None:
        # The wire's name, and after how many seconds without an event it has a heartbeat unasked; 0: never.
        self.name = name
        self.heartbeat_s = heartbeat_s
        # Takes a time in unix microseconds and `true` or `false`. Empty: the wire has no heartbeats.
        self._heartbeat = heartbeat
        declined = b"".join(_NO_NUMBER if column == "times" else NO_VALUE for column in columns)
        # By kind, with every kind that there is; never changed.
        self._templates = {kind: templates.get(kind, declined) for kind in KIND_NAMES}
        # Returns the columns of a batch, the kinds first.
        self._columns = attrgetter("kinds", *columns)
        # For a value that is made of a column, as the dates of v2 are of the times; None: there is none.
        self._last = last

    def render(self, batch: Batch, indices: Sequence[int]) -> list[bytes]:
        """Return the JSON of each event that `indices` names; empty where the kind has no template."""
        columns = self._columns(batch)
        if isinstance(indices, range):
            kinds, *values = map(itemgetter(slice(indices.start, indices.stop)), columns)
        else:
            kinds, *values = [[column[i] for i in indices] for column in columns]
        if self._last is not None:
            values[-1] = self._last(values[-1])
        # `zip` makes the tuple that `%` takes: Python itself does nothing for each event.
        return list(map(mod, map(self._templates.__getitem__, kinds), zip(*values, strict=True)))

    def heartbeat(self, position: int, live: bool) -> bytes:
        """Return the JSON of a heartbeat; empty if the wire has none."""
        values = (max(position - 1, 0), b"true" if live else b"false")
        return self._heartbeat % values if self._heartbeat else b""


def commit(kind: bytes, operation: bytes, rest: bytes) -> bytes:
    """Return the template of a commit, where `kind` and `operation` are a key with its value each."""
    return _START + kind + b',"commit":{"rev":"%b",' + operation + b"," + _PATH + rest + b"}}"


def notice(kind: bytes, name: bytes) -> bytes:
    """Return the template of an identity or account event, whose body is the value of the key `name`."""
    return _START + kind + b"," + _NO_PATH + b'"' + name + b'":%b}' + NO_VALUE


def heartbeat(kind: bytes) -> bytes:
    """Return the template of a heartbeat, where `kind` is a key with its value."""
    return b'{"time_us":%d,' + kind + b',"live":%b}'
