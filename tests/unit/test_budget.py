from __future__ import annotations

from jetstream.budget import TokenBucket


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_and_no_more() -> None:
    bucket = TokenBucket(10, 20, clock=Clock())

    assert [bucket.spend() for _ in range(22)] == [True] * 20 + [False] * 2


def test_tokens_come_back_with_time_up_to_the_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(10, 20, clock=clock)
    bucket.spend(20)
    clock.now += 0.5
    assert [bucket.spend() for _ in range(6)] == [True] * 5 + [False]

    clock.now += 1_000
    assert [bucket.spend() for _ in range(21)] == [True] * 20 + [False]


def test_what_costs_more_takes_more_or_nothing() -> None:
    clock = Clock()
    bucket = TokenBucket(1, 10, clock=clock)

    assert bucket.spend(8)
    assert not bucket.spend(3)
    assert bucket.spend(2)


def test_a_steady_rate_passes_for_ever() -> None:
    clock = Clock()
    bucket = TokenBucket(100, 1, clock=clock)
    for _ in range(1_000):
        clock.now += 0.0101
        assert bucket.spend()
