from __future__ import annotations

from jetstream.token_bucket import TokenBucket

NOW = 100.0


def test_a_burst_passes_and_no_more() -> None:
    bucket = TokenBucket(10, 20, NOW)

    assert [bucket.spend(NOW) for _ in range(22)] == [True] * 20 + [False] * 2


def test_tokens_come_back_with_time_up_to_the_burst() -> None:
    bucket = TokenBucket(10, 20, NOW)
    bucket.spend(NOW, 20)
    assert [bucket.spend(NOW + 0.5) for _ in range(6)] == [True] * 5 + [False]

    assert [bucket.spend(NOW + 1_000) for _ in range(21)] == [True] * 20 + [False]


def test_what_is_saved_and_not_spent_is_no_more_than_a_burst() -> None:
    bucket = TokenBucket(10, 20, NOW)
    bucket.spend(NOW, 10)

    assert [bucket.spend(NOW + 1_000) for _ in range(21)] == [True] * 20 + [False]


def test_what_costs_more_takes_more_or_nothing() -> None:
    bucket = TokenBucket(1, 10, NOW)

    assert bucket.spend(NOW, 8)
    assert not bucket.spend(NOW, 3)
    assert bucket.spend(NOW, 2)


def test_a_steady_rate_passes_for_ever() -> None:
    bucket = TokenBucket(100, 1, NOW)
    for n in range(1_000):
        assert bucket.spend(NOW + n * 0.0101)


def test_what_is_overspent_is_owed() -> None:
    bucket = TokenBucket(10, 20, NOW)

    assert bucket.overspend(NOW, 20) == 0
    assert bucket.overspend(NOW, 5) == 0.5
    assert bucket.overspend(NOW + 0.25, 0) == 0.25
    assert not bucket.spend(NOW + 0.5)
    assert bucket.spend(NOW + 0.61)


def test_how_long_to_wait_for_tokens() -> None:
    bucket = TokenBucket(10, 20, NOW)

    assert bucket.wait_s(NOW, 20) == 0
    bucket.spend(NOW, 20)
    assert bucket.wait_s(NOW) == 0.1
    assert bucket.spend(NOW + 0.11)


def test_when_it_is_full_again() -> None:
    bucket = TokenBucket(10, 20, NOW)

    assert bucket.full_at == NOW
    bucket.spend(NOW + 5, 10)
    assert bucket.full_at == NOW + 6
