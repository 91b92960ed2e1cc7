"""What each edge has of the limits that hold for all of them together. Pure.

Each edge tells what has changed: of addresses, and how many subscribers it has. The others are told in
turn. They know it a few hundredths of a second later, and may exceed a limit by what begins in that
time. When an edge ends, the others are told that what it had is gone. A new one is told what they have;
its buckets are full.

    edge 1 ──usage, load──▶ `add`, `count_subscribers` ─▶ `_untold` of every other edge ──`take`──▶ edge 2 … N

What is told are differences, never totals: so they are added up while they wait, and it does not matter
how many of them one message has. A message is not lost while the channel is there, and with the channel
ends the edge.
"""

from __future__ import annotations

from collections.abc import Iterable

from jetstream.web.address_changes import NO_CHANGE, Change, Key

# What changed of some addresses: each once in a list, or several times.
Changes = list[tuple[Key, Change]]


class SharedLimits:
    """What every edge has, by its number. `subscribers_max` is the limit of all subscribers together.

    All methods are called in the supervisor's event loop. An edge is known here from `begin` to `end`.
    """

    def __init__(self, subscribers_max: int) -> None:
        # With fewer subscribers, no edge need know how many the others have: they come and go all the time.
        self._told_from = subscribers_max // 2
        # Connections and replays of each address, by edge: the fields of a `Change` that last. The others are
        # tokens, which were spent once. Bounded by the connections of the edge.
        self._usage: dict[int, dict[Key, Change]] = {}
        # Subscribers, by edge.
        self._subscribers: dict[int, int] = {}
        # What each edge is to be told of the others.
        self._untold: dict[int, dict[Key, Change]] = {}
        # What each edge was told last of how many subscribers the others have.
        self._told: dict[int, int] = {}

    def begin(self, edge: int) -> None:
        """Record an edge that is ready: it is to be told what the others have.

        It is a process that has nothing yet. Of the others it is told their connections and replays,
        but no tokens that were spent.
        """
        self._usage[edge], self._subscribers[edge], self._told[edge] = {}, 0, 0
        self._untold[edge] = {}
        for other, usage in self._usage.items():
            if other != edge:
                _add(self._untold[edge], usage.items())

    def end(self, edge: int) -> None:
        """Record that an edge has ended, and what it had with it.

        An edge that was never ready is not known here; then nothing happens.
        """
        usage = self._usage.pop(edge, {})
        for table in (self._subscribers, self._untold, self._told):
            table.pop(edge, None)
        gone = [(key, Change(-each.connections, -each.replays)) for key, each in usage.items()]
        for untold in self._untold.values():
            _add(untold, gone)

    def add(self, edge: int, changes: Changes) -> None:
        """Take what has changed of addresses at an edge.

        What an edge says that has ended, or that is not ready yet, is ignored.
        """
        if edge not in self._usage:
            return
        lasting = [(key, Change(each.connections, each.replays)) for key, each in changes]
        _add(self._usage[edge], lasting)
        for other, untold in self._untold.items():
            if other != edge:
                _add(untold, changes)

    def count_subscribers(self, edge: int, count: int) -> None:
        """Take how many subscribers an edge has."""
        if edge in self._subscribers:
            self._subscribers[edge] = count

    def take(self, edge: int) -> tuple[Changes, int | None]:
        """Return what an edge is to be told: changes at the others, and how many subscribers they have.

        None: it knows that already. While there are few it is told that there are none.

        The changes are not returned again. While all edges together have fewer than half of the limit,
        the exact number makes no difference to any edge.

        Raises KeyError for an edge that is not known.
        """
        changes = list(self._untold[edge].items())
        self._untold[edge] = {}
        total = sum(self._subscribers.values())
        others = total - self._subscribers[edge] if total >= self._told_from else 0
        told, self._told[edge] = self._told[edge], others
        return changes, None if told == others else others

    @property
    def edges(self) -> list[int]:
        """The edges that are ready."""
        return list(self._untold)


def _add(table: dict[Key, Change], changes: Iterable[tuple[Key, Change]]) -> None:
    """Add changes to a table; an address of which nothing is left is forgotten."""
    for key, change in changes:
        total = table.get(key, NO_CHANGE).plus(change)
        if total == NO_CHANGE:
            table.pop(key, None)
        else:
            table[key] = total


def packed(changes: Changes) -> list[list[int]]:
    """Return changes for JSON.

    Each row has the IP version, the address or its network as a number, and the five fields of
    `Change`.
    """
    return [[*key, *change] for key, change in changes]


def unpacked(rows: Iterable[list[int]]) -> Changes:
    """Return what `packed` returned."""
    return [((row[0], row[1]), Change(*row[2:])) for row in rows]
