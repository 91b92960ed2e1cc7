from __future__ import annotations

from jetstream.web.pending import Pending


def test_time_counts_from_the_beginning_and_not_from_the_last_byte() -> None:
    pending = Pending[str](10.0, bytes_max=100)
    pending.update("a", 0.0, 1)
    pending.update("b", 5.0, 1)
    pending.update("a", 9.0, 2)
    assert pending.expired(9.9) is None
    assert pending.expired(10.0) == "a"
    pending.remove("a")
    assert pending.expired(14.9) is None
    assert pending.expired(15.0) == "b"


def test_who_begins_again_is_the_last() -> None:
    pending = Pending[str](10.0, bytes_max=100)
    pending.start("a", 0.0)
    pending.start("b", 1.0)
    pending.start("a", 2.0)
    assert pending.oldest() == "b"
    assert len(pending) == 2


def test_over_the_bound_the_longest_waiting_with_bytes_goes() -> None:
    pending = Pending[str](10.0, bytes_max=100)
    pending.start("silent", 0.0)
    pending.update("a", 1.0, 50)
    pending.update("b", 2.0, 50)
    assert pending.over_limit() is None
    pending.update("b", 3.0, 51)
    assert pending.over_limit() == "a"
    pending.remove("a")
    pending.remove("a")
    assert pending.over_limit() is None
