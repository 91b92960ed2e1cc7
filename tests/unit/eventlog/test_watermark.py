"""A heartbeat says that the writer lives, and below which position nothing more comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetstream.eventlog.watermark import COUNTS, beat_after, watermark_of

POSITIONS = st.integers(0, 1 << 62)


@given(POSITIONS, st.lists(POSITIONS))
def test_each_heartbeat_differs_from_the_one_before_and_promises_no_more_than_is_so(
    first: int, positions: list[int]
) -> None:
    """The first one may be of a writer that counts."""
    beat = first
    for position in positions:
        before, beat = beat, beat_after(beat, position)
        assert beat != before
        assert position - COUNTS < watermark_of(beat) <= position


@given(st.lists(POSITIONS).map(sorted))
def test_a_watermark_never_falls_while_positions_rise(positions: list[int]) -> None:
    beat, watermarks = 0, [0]
    for position in positions:
        beat = beat_after(beat, position)
        watermarks.append(watermark_of(beat))
    assert watermarks == sorted(watermarks)


def test_a_watermark_that_stands_still_is_told_again_and_again() -> None:
    beats = [beat_after(0, 1_000)]
    for _ in range(COUNTS):
        beats.append(beat_after(beats[-1], 1_000))
    assert beats[:3] == [769, 770, 771]
    assert len(set(beats)) == COUNTS
    assert set(map(watermark_of, beats)) == {768}
