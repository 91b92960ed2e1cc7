"""The most frequent collections: rates, labels, and bounds on both."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetstream import frequent
from jetstream.frequent import OTHER, FrequentCollections


def test_rates_are_of_whole_seconds_and_the_most_frequent_come_first() -> None:
    counts = FrequentCollections()
    counts.add([b"a.b.before"])
    assert counts.rates(5) == []
    counts.tick(0.0)
    counts.add([b"a.b.c"] * 3 + [b"a.b.d"] + [b""])
    counts.tick(2.0)
    counts.add([b"a.b.d"] * 100)
    assert counts.rates(5) == [("a.b.c", 1.5), ("a.b.d", 0.5)]
    assert counts.rates(1) == [("a.b.c", 1.5)]


def test_rates_forget_what_is_older_than_the_window() -> None:
    counts = FrequentCollections()
    for second in range(30):
        counts.tick(float(second))
        counts.add([b"a.b.old"] if second < 10 else [b"a.b.new"] * 2)
    counts.tick(30.0)
    assert counts.rates(5) == [("a.b.new", 2.0)]


def test_collections_without_a_label_are_counted_together() -> None:
    counts = FrequentCollections(labels_max=2)
    counts.add([b"a.b.one", b"a.b.two", b"a.b.three", b"a.b.two", b"a.b.four"])
    assert counts.totals() == {"a.b.one": 1, "a.b.two": 2, OTHER: 2}


def test_a_rare_collection_loses_its_label_to_a_frequent_one() -> None:
    counts = FrequentCollections(labels_max=1)
    counts.add([b"a.b.rare"])
    for second in range(200):
        counts.tick(float(second))
        counts.add([b"a.b.often"] * 10 + [b"a.b.sometimes"] * 5)
    totals = counts.totals()
    assert set(totals) == {"a.b.often", OTHER}
    assert 0 < totals["a.b.often"] < 2_000


def test_a_label_among_the_most_frequent_stays() -> None:
    counts = FrequentCollections(labels_max=2)
    for second in range(200):
        counts.add([b"a.b.one", b"a.b.two", b"a.b.three"])
        counts.tick(float(second))
    assert counts.totals() == {"a.b.one": 200, "a.b.two": 200, OTHER: 200}


def test_memory_is_bounded_whatever_accounts_make_up() -> None:
    counts = FrequentCollections()
    number = 0
    for second in range(70):
        counts.tick(float(second))
        for _ in range(5):
            counts.add([b"a.b.x%d" % (number := number + 1) for _ in range(1_000)])
    assert len(counts._pending) < frequent._PENDING_MAX + 1_000
    assert len(counts._recent) <= frequent._KEPT_MAX
    assert all(len(each) <= frequent._KEPT_MAX for _, each in counts._seconds)
    assert len(counts.totals()) == frequent.LABELS_MAX + 1


@given(st.lists(st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=20), max_size=200))
def test_other_only_rises_and_nothing_is_counted_twice(batches: list[list[bytes]]) -> None:
    counts, other = FrequentCollections(labels_max=2), 0
    for second, batch in enumerate(batches):
        counts.add(batch)
        counts.tick(float(second))
        totals = counts.totals()
        assert totals[OTHER] >= other
        other = totals[OTHER]
        assert sum(totals.values()) <= sum(map(len, batches[: second + 1]))
