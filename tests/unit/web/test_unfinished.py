from __future__ import annotations

from jetstream.web.unfinished import Unfinished


def test_time_counts_from_the_beginning_and_not_from_the_last_byte() -> None:
    unfinished = Unfinished[str](10.0)
    unfinished.hold("a", 0.0, 1)
    unfinished.hold("b", 5.0, 1)
    unfinished.hold("a", 9.0, 2)
    assert unfinished.expired(9.9) is None
    assert unfinished.expired(10.0) == "a"
    unfinished.end("a")
    assert unfinished.expired(14.9) is None
    assert unfinished.expired(15.0) == "b"


def test_who_begins_again_is_the_last() -> None:
    unfinished = Unfinished[str](10.0)
    unfinished.begin("a", 0.0)
    unfinished.begin("b", 1.0)
    unfinished.begin("a", 2.0)
    assert unfinished.longest() == "b"
    assert len(unfinished) == 2


def test_over_the_bound_the_longest_waiting_with_bytes_goes() -> None:
    unfinished = Unfinished[str](10.0, bytes_max=100)
    unfinished.begin("silent", 0.0)
    unfinished.hold("a", 1.0, 50)
    unfinished.hold("b", 2.0, 50)
    assert unfinished.excess() is None
    unfinished.hold("b", 3.0, 51)
    assert unfinished.excess() == "a"
    unfinished.end("a")
    unfinished.end("a")
    assert unfinished.excess() is None
