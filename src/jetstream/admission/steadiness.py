"""Which sources are connected, and which of them are so for good: short outages do not count. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator


class _Source:
    """One source. `steady` is what `connected` was for the last `grace_s` seconds or longer."""

    def __init__(self, *, steady: bool, since: float) -> None:
        self.connected = False  # changes with its connection
        self.steady = steady  # follows `connected` when that has not changed for `grace_s`
        self.since = since  # when `connected` changed last


class Steadiness:
    """The sources, by name. `now` is in seconds of any clock that does not go back.

    At first all count as steady, so that the one that connects first does not win because of that. One that
    is added later does not.
    """

    def __init__(self, names: Iterable[str], now: float, grace_s: float) -> None:
        self._grace_s = grace_s
        # By name; changed by `set_names`.
        self._sources = {name: _Source(steady=True, since=now) for name in names}

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def set_names(self, names: Iterable[str], now: float) -> None:
        """Set the sources. Those that were there before stay as they are."""
        before = self._sources
        self._sources = {name: before.get(name) or _Source(steady=False, since=now) for name in names}

    def update(self, connected: Collection[str], now: float) -> bool:
        """Note which sources are connected; return whether that changes anything."""
        connected = frozenset(connected)  # a list of 10,000 PDSes would be searched 10,000 times
        changes = [self._update(source, name in connected, now) for name, source in self._sources.items()]
        return any(changes)

    def _update(self, source: _Source, connected: bool, now: float) -> bool:
        before = (source.connected, source.steady)
        if connected != source.connected:
            source.connected, source.since = connected, now
        if now - source.since >= self._grace_s:
            source.steady = connected
        return before != (source.connected, source.steady)

    def is_connected(self, name: str) -> bool:
        """Return whether a source is connected at the moment."""
        return self._sources[name].connected

    def first(self, names: Collection[str]) -> str | None:
        """Return the first of some sources that is steady, else the first that is connected."""
        steady = (name for name in names if self._sources[name].steady)
        connected = (name for name in names if self._sources[name].connected)
        return next(steady, None) or next(connected, None)
