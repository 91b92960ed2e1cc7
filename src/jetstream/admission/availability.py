"""Which sources are connected: at the moment, a short time ago, or for good. Pure.

Two decisions need it. Which source decides the states of accounts does not change with a short outage: that
is asked of sources that are *steady* (`accounts`). And a message is held while another source may bring those
before it (`judge`). A source that has just lost its connection, or was just added, is about to have one: what
it was sent before comes then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator


class _Source:
    """One source. `steady` is what `connected` was for the last `grace_s` seconds or longer.

    While `connected` changes more often than that, `steady` stays as it was.
    """

    __slots__ = ("connected", "since", "steady")

    def __init__(self, *, steady: bool, since: float) -> None:
        self.connected = False  # changes with its connection
        self.steady = steady  # follows `connected` when that has not changed for `grace_s`
        self.since = since  # when `connected` changed last


class Availability:
    """The sources, by name. `now` is in seconds of any clock that does not go back.

    At first all count as steady, so that the one that connects first does not win because of that. One that
    is added later does not.
    """

    def __init__(self, names: Iterable[str], now: float, grace_s: float) -> None:
        self._grace_s = grace_s
        # By name; changed by `set_names`.
        self._sources = {name: _Source(steady=True, since=now) for name in names}
        # Those that are connected, as `update` was told.
        self._connected: set[str] = set()

    def __contains__(self, name: object) -> bool:
        """Return whether there is a source of this name."""
        return name in self._sources

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the sources: relays in their order, then PDSes."""
        return iter(self._sources)

    def __len__(self) -> int:
        """Return how many sources there are, connected or not."""
        return len(self._sources)

    def set_names(self, names: Iterable[str], now: float) -> None:
        """Set the sources. Those that were there before stay as they are.

        A new one counts as not connected since now, until `update` says otherwise.
        """
        before = self._sources
        self._sources = {name: before.get(name) or _Source(steady=False, since=now) for name in names}
        self._connected.intersection_update(self._sources)

    def update(self, connected: Collection[str], now: float) -> bool:
        """Note which sources are connected; return whether that changes anything.

        To be called when that changes, and every second or so.
        """
        self._connected = set(connected)
        changes = [self._update(name, source, now) for name, source in self._sources.items()]
        return any(changes)

    def _update(self, name: str, source: _Source, now: float) -> bool:
        """Take over whether a source is connected; return whether `connected` or `steady` has changed."""
        connected, before = name in self._connected, (source.connected, source.steady)
        if connected != source.connected:
            source.connected, source.since = connected, now
        if now - source.since >= self._grace_s:
            source.steady = connected
        return before != (source.connected, source.steady)

    def is_connected(self, name: str) -> bool:
        """Return whether a source is connected at the moment. Raises KeyError for one that is not here."""
        return self._sources[name].connected

    def has_others(self, source: str, now: float, within_s: float) -> bool:
        """Return whether another source is connected, or was less than `within_s` ago, or was added then."""
        if len(self._connected) > (source in self._connected):
            return True
        return any(name != source and now - each.since < within_s for name, each in self._sources.items())

    def has_any(self, names: Collection[str], now: float, within_s: float) -> bool:
        """Return whether one of some sources is connected, or was lately, or was added then.

        `within_s` is how many seconds ago that may be. Names of sources that are gone are passed over.
        """
        found = (self._sources[name] for name in names if name in self._sources)
        return any(each.connected or now - each.since < within_s for each in found)

    def first(self, names: Collection[str]) -> str | None:
        """Return the first of some sources that is steady, else the first that is connected; else None.

        Raises KeyError for a source that is not here.
        """
        steady = (name for name in names if self._sources[name].steady)
        connected = (name for name in names if self._sources[name].connected)
        return next(steady, None) or next(connected, None)
