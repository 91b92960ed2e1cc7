"""Which messages should have been read, by the revs of the first ones that were."""

from __future__ import annotations

import pytest
from tests.signed import rev

from jetstream.admission.beginning import Beginning

APART = 1_000


def begun(*revs: int) -> Beginning:
    beginning = Beginning(APART)
    for each in revs:
        beginning.note(rev(each))
    return beginning


@pytest.mark.parametrize("noted", [(), (5_000,)])
def test_the_first_message_itself_says_when_reading_began(noted: tuple[int, ...]) -> None:
    beginning = begun(*noted)
    assert beginning.is_after(rev(9_001), rev(10_000))
    assert not beginning.is_after(rev(8_999), rev(10_000))


def test_later_on_the_first_ones_do_whatever_names_it() -> None:
    beginning = begun(10_000, 10_010, *range(20_000, 30_000, 1_000))
    for seen in 10_020, 99_000:
        assert beginning.is_after(rev(9_011), rev(seen))
        assert not beginning.is_after(rev(9_009), rev(seen))


@pytest.mark.parametrize("chosen", [1, 90_000])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_account_that_chooses_its_rev_does_not_move_it(chosen: int, place: int) -> None:
    revs = [10_000, 10_010, 10_020]
    revs.insert(place, chosen)
    beginning = begun(*revs)
    assert beginning.is_after(rev(10_011), rev(99_000))
    assert not beginning.is_after(rev(8_999), rev(99_000))


def test_what_comes_long_after_does_not_move_it() -> None:
    beginning = begun(*range(10_000, 10_020), 1, 2, 3)
    assert not beginning.is_after(rev(8_999), rev(99_000))


def test_a_message_that_names_none_lacks_none() -> None:
    assert not Beginning(APART).is_after("", rev(1))
    assert not begun(1, 2).is_after("", rev(3))
