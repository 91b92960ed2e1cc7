"""The most frequent collections of events, in bounded memory. Pure.

An account can make up any number of collections. So those that are rare are not told apart:

    add ──▶ pending ──▶ the current second ──▶ the last seconds ──▶ rates
                   └──▶ recent: counts that fade ──▶ which collections have a label
                   └──▶ the count of each label, or of all others

A label is a time series in Prometheus, so it should last. A collection gets one while some are free, or when
it is among the most frequent, and loses it when it is far from them. Its count begins at 0 with each label.
What comes without one is in `other`. So every count only rises.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

# Values of the label `collection` at a time, beside `other`: each is a time series that Prometheus
# keeps.
LABELS_MAX: Final = 100
# What events without a label are counted under. An NSID has at least two dots, so none is called that.
OTHER: Final = "other"
# Collections that are told apart, in one second and again of those that fade. If there are more, half of
# this are kept: the most frequent ones. It bounds the memory against accounts that make up collections.
_KEPT_MAX: Final = 2_000
# Events that are counted at once, which takes 0.2 ms. One `Counter.update` of many is far cheaper than
# many of few.
_PENDING_MAX: Final = 4_000
# Whole seconds that rates are means of.
_WINDOW_S: Final = 10
# Seconds between two choices of labels.
_CHOICE_S: Final = 60


class FrequentCollections:
    """Counts collections. Call `add` for each batch and `tick` every second, with monotonic seconds.

    All methods run on the event loop's thread. Names are bytes as they are in a batch, and text in what
    is returned.
    """

    def __init__(self, labels_max: int = LABELS_MAX) -> None:
        self._labels_max = labels_max
        # Collections of events that are not counted yet, one for each event.
        self._pending: list[bytes] = []
        # When each of the last seconds began, with its counts. `tick` begins another one.
        self._seconds: deque[tuple[float, Counter[bytes]]] = deque(maxlen=_WINDOW_S + 1)
        # Counts of which half is forgotten with each choice of labels, so they tell what is frequent
        # lately.
        self._recent: Counter[bytes] = Counter()
        # The count of each collection that has a label, since it has it; changed by `_choose`, too.
        self._labelled: dict[bytes, int] = {}
        # Events of all other collections.
        self._other = 0
        # Seconds until labels are chosen again.
        self._choice_in = _CHOICE_S

    def add(self, collections: list[bytes]) -> None:
        """Count the collections of a batch; the empty one of an event without a collection is left out."""
        self._pending += collections
        if len(self._pending) >= _PENDING_MAX:
            self._count()

    def tick(self, now: float) -> None:
        """Begin another second. Every `_CHOICE_S` of them, choose labels again."""
        self._count()
        self._seconds.append((now, Counter()))
        self._choice_in -= 1
        if self._choice_in <= 0:
            self._choice_in = _CHOICE_S
            self._choose()

    def rates(self, count_max: int) -> list[tuple[str, float]]:
        """Return the most frequent collections of the last seconds, and how many events each had a second.

        At most `count_max`, the most frequent first. Empty until one second is over: the present one
        does not count.
        """
        # The last entry is the second in progress, whose beginning is the end of the others.
        if len(self._seconds) < 2:
            return []
        *whole, (end, _) = self._seconds
        total: Counter[bytes] = Counter()
        for _, counts in whole:
            total.update(counts)
        seconds = end - whole[0][0]
        return [(_text(name), count / seconds) for name, count in total.most_common(count_max)]

    def totals(self) -> dict[str, int]:
        """Return the count of each label, and that of `other`.

        Each only rises while its label exists. A label that is taken away and given again begins at 0,
        which Prometheus reads as a reset of the counter.
        """
        self._count()
        return {_text(name): count for name, count in self._labelled.items()} | {OTHER: self._other}

    def _count(self) -> None:
        """Count the pending events in the present second, in the recent counts, and under a label."""
        counts = Counter(self._pending)
        self._pending = []
        # Identity and account events have no collection. `Counter` does not mind a missing key.
        del counts[b""]
        if self._seconds:
            self._seconds[-1][1].update(counts)
            _shorten(self._seconds[-1][1])
        self._recent.update(counts)
        _shorten(self._recent)
        for name, count in counts.items():
            self._count_label(name, count)

    def _count_label(self, name: bytes, count: int) -> None:
        """Count events under the label of their collection, under a free one, or under `other`."""
        if name in self._labelled:
            self._labelled[name] += count
        elif len(self._labelled) < self._labels_max:
            self._labelled[name] = count
        else:
            self._other += count

    def _choose(self) -> None:
        """Take the labels of collections that are not frequent any more, and give them to others.

        A collection keeps its label while it is among the first 2 * `labels_max`, and gets one only
        among the first `labels_max`. The distance keeps labels from changing back and forth.
        """
        ranked = _names(self._recent.most_common(2 * self._labels_max))
        near, frequent = set(ranked), ranked[: self._labels_max]
        self._labelled = {name: count for name, count in self._labelled.items() if name in near}
        for name in frequent:
            if name not in self._labelled and len(self._labelled) < self._labels_max:
                self._labelled[name] = 0
        self._recent = Counter({name: count // 2 for name, count in self._recent.items() if count > 1})


def _names(ranked: Iterable[tuple[bytes, int]]) -> list[bytes]:
    """Return the names of counts, in their order."""
    return [name for name, _ in ranked]


def _text(name: bytes) -> str:
    """Return a collection as the value of a label. The protocol allows ASCII only; other bytes become `�`."""
    return name.decode("ascii", "replace")


def _shorten(counts: Counter[bytes]) -> None:
    """Forget the rarest if there are too many.

    Half of the room is free afterwards, so that the next few calls find nothing to do.
    """
    if len(counts) > _KEPT_MAX:
        kept = counts.most_common(_KEPT_MAX // 2)
        counts.clear()
        counts.update(dict(kept))
