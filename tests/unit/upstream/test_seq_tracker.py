"""Numbers alone: which frames are in doubt, and where the cursor goes. Content is a name, the log a list."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetstream.limits import UpstreamLimits
from jetstream.upstream.seq_tracker import SeqTracker

LIMITS = UpstreamLimits()
NEAR = LIMITS.near_gap
FAR = 50_000_000

Frame = tuple[int, str]  # number and content; no content: it holds no event


class Reader:
    """A tracker, and the log that is asked about frames in doubt."""

    def __init__(self, last: int | None, provisional: int | None = None) -> None:
        self.tracker = SeqTracker(last, provisional)
        self.tracker.connected()
        self.log: list[str] = []
        self.asked = 0

    def read(self, frames: Iterable[Frame]) -> Reader:
        for seq, content in frames:
            if self.tracker.advance(seq):
                self.log += [content] if content else []
            elif not content:
                self.tracker.skip(seq)
            elif self._known(seq, content):
                self.tracker.repeat(seq)
            else:
                self.tracker.accept(seq)
                self.log.append(content)
        return self

    def numbers(self, *seqs: int) -> Reader:
        """Read frames that are known by their number."""
        return self.read((seq, str(seq)) for seq in seqs)

    def killed(self) -> Reader:
        """Return the reader after `kill -9`: the log and the two stored numbers stay."""
        other = Reader(None)
        other.tracker = SeqTracker(
            self.tracker.last, self.tracker.unconfirmed, self.tracker.fell_from, resumed=True
        )
        other.log = self.log
        return other

    def _known(self, seq: int, content: str) -> bool:
        if not self.tracker.in_doubt(seq):
            return False
        self.asked += 1
        return content in self.log

    @property
    def taken(self) -> list[int]:
        return list(map(int, self.log))

    @property
    def cursor(self) -> tuple[int | None, int | None]:
        return self.tracker.last, self.tracker.provisional


# One by one


def test_numbers_that_follow_each_other_are_taken_without_a_question() -> None:
    reader = Reader(100).numbers(101, 102, 103)

    assert (reader.taken, reader.cursor, reader.asked) == ([101, 102, 103], (103, None), 0)
    assert (reader.tracker.gaps, reader.tracker.jumps, reader.tracker.repeats) == (0, 0, 0)


@pytest.mark.parametrize("first", [1, 7_000_000_000, 2**63 - 10])
def test_without_a_cursor_any_number_begins(first: int) -> None:
    reader = Reader(None).numbers(first, first + 1, first + 2)

    assert (reader.taken, reader.cursor) == ([first, first + 1, first + 2], (first + 2, None))
    assert reader.tracker.gaps == 0


@pytest.mark.parametrize("gap", [2, 5, 1_000, NEAR, NEAR + 1, 300_000, FAR, 2**62])
def test_a_number_above_a_gap_is_provisional_until_a_higher_one_comes(gap: int) -> None:
    reader = Reader(100).numbers(101, 101 + gap)
    assert (reader.taken, reader.cursor) == ([101, 101 + gap], (101, 101 + gap))

    assert reader.numbers(102 + gap).cursor == (102 + gap, None)
    assert (reader.tracker.gaps, reader.tracker.jumps) == (1, gap > NEAR)


@pytest.mark.parametrize("gap", [2, 5, 1_000, NEAR, 300_000, FAR, 2**62])
def test_an_outlier_costs_no_other_frame(gap: int) -> None:
    reader = Reader(100).numbers(101, 101 + gap, *range(102, 110))

    wanted = [101, 101 + gap, *range(102, 110)]
    assert reader.taken == list(dict.fromkeys(wanted))
    assert reader.cursor[0] == 109


def test_gaps_one_after_the_other_confirm_each_other() -> None:
    reader = Reader(100).numbers(110, 120, 130)

    assert (reader.taken, reader.cursor, reader.tracker.gaps) == ([110, 120, 130], (120, 130), 3)


def test_the_first_frame_of_a_connection_is_in_doubt_when_it_leaves_a_gap() -> None:
    reader = Reader(100).numbers(105, 106, 110)

    assert (reader.taken, reader.asked) == ([105, 106, 110], 1)
    reader.tracker.connected()
    assert reader.numbers(115, 116, 120).asked == 2


@pytest.mark.parametrize(
    "outliers", [(300_000,), (300_000, 400_000), (300_000, 300_001, 300_002), (9, 300_000, 5)]
)
@pytest.mark.parametrize("base", [100, 30_000_000])
def test_after_several_outliers_the_old_sequence_goes_on(outliers: tuple[int, ...], base: int) -> None:
    outliers = tuple(base + outlier if outlier > 10 else base - 20 - outlier for outlier in outliers)
    reader = Reader(base).numbers(base + 1, *outliers, *range(base + 2, base + 12))

    assert reader.taken == [base + 1, *outliers, *range(base + 2, base + 12)]
    assert reader.cursor == (base + 11, None)


@pytest.mark.parametrize("outliers", [range(300_000, 300_012), range(300_000, 200_000, -9_000), range(5, 17)])
def test_many_outliers_cost_no_other_frame(outliers: range) -> None:
    reader = Reader(1_000).numbers(1_001, *outliers, *range(1_002, 1_012))

    assert reader.taken == [1_001, *outliers, *range(1_002, 1_012)]
    assert reader.cursor[0] == 1_011


@pytest.mark.parametrize("outliers", [(300_000, 400_000), (400_000, 300_000), (FAR, 2 * FAR, 3 * FAR)])
def test_far_outliers_do_not_confirm_each_other(outliers: tuple[int, ...]) -> None:
    reader = Reader(100).numbers(101, *outliers)
    assert reader.tracker.cursor == 101  # what a new connection asks for

    reader.numbers(102, 103)
    assert (reader.cursor, reader.tracker.restarts) == ((103, None), 0)


@pytest.mark.parametrize("lows", [(5,), (5, 6), (7, 6, 5, 4), (5, 5, 5)])
def test_a_few_low_numbers_are_no_restart(lows: tuple[int, ...]) -> None:
    reader = Reader(1_000).numbers(1_001, *lows)
    assert (reader.tracker.cursor, reader.tracker.restarts) == (1_001, 0)

    assert reader.numbers(1_002).cursor == (1_002, None)


def test_jumps_are_believed_when_they_go_on() -> None:
    seqs = [100 + FAR * n for n in range(1, LIMITS.confirm_frames + 2)]
    reader = Reader(100).numbers(*seqs)

    assert reader.taken == seqs
    assert reader.cursor == (seqs[-2], seqs[-1])


@pytest.mark.parametrize(
    "seqs", [(1, 3, 2, 4), (2, 1, 3, 4), (1, 2, 4, 3), (10, 30, 20, 40), (1, 4, 3, 2, 5), (1, 4, 2, 3, 5, 6)]
)
@pytest.mark.parametrize("last", [0, None])
def test_swapped_neighbours_are_all_taken(seqs: tuple[int, ...], last: int | None) -> None:
    reader = Reader(last).numbers(*seqs)

    assert reader.taken == list(seqs)
    assert reader.numbers(*seqs).taken == list(seqs)


def test_repeats_are_left_out_and_counted() -> None:
    reader = Reader(100).numbers(101, 101, 100, 101, 102, 101, 102, 103)

    assert reader.taken == [101, 100, 102, 103]  # 100 is new to this log
    assert reader.tracker.repeats == 4


def test_every_frame_twice_is_taken_once_outliers_too() -> None:
    seqs = [101, 101 + 7, 102, 300_000, 103, 105, 104, 106, 107, 108, 109]
    reader = Reader(100).numbers(*(seq for seq in seqs for _ in range(2)))

    assert reader.taken == list(dict.fromkeys(seqs))


@pytest.mark.parametrize("outlier", [5, 300_000])
def test_an_outlier_that_comes_again_later_is_a_repeat(outlier: int) -> None:
    reader = Reader(100).numbers(101, 101 + outlier, 102, 103, 101 + outlier, 104, 105)
    assert reader.taken == [101, 101 + outlier, 102, 103, 104, 105]

    reader.numbers(101 + outlier)
    assert reader.tracker.repeats == 2


def test_the_frame_that_has_the_number_of_an_outlier_by_right_is_taken() -> None:
    reader = Reader(100).read([(101, "101"), (104, "9")]).numbers(102, 103, 104, 105)

    assert reader.taken == [101, 9, 102, 103, 104, 105]
    assert reader.cursor == (105, None)


def test_no_more_outliers_are_remembered_than_the_bound() -> None:
    reader = Reader(100)
    for n in range(1, 2 * LIMITS.outliers_max):
        reader.numbers(100 + n, FAR + n)

    assert len(reader.tracker._outliers) <= LIMITS.outliers_max
    assert reader.cursor[0] == 100 + 2 * LIMITS.outliers_max - 1


# Restarts


@pytest.mark.parametrize(
    ("last", "first"), [(5_000, 1), (28_000_000_000, 1), (5_000, 4_000), (5_000, 4_999), (9, 1)]
)
def test_a_sequence_that_restarted_is_followed_from_its_first_frame(last: int, first: int) -> None:
    reader = Reader(last).numbers(last + 1)
    reader.tracker.connected()
    reader.read((seq, f"-{seq}") for seq in range(first, first + 50))

    assert reader.taken == [last + 1, *(-seq for seq in range(first, first + 50))]
    assert reader.cursor == (first + 49, None)
    assert (reader.tracker.restarts, reader.tracker.repeats) == (1, 0)
    assert reader.asked <= LIMITS.restart_frames + 1


def test_a_sequence_may_restart_in_the_middle_of_a_connection() -> None:
    reader = Reader(FAR).numbers(FAR + 1, *range(1, 2_000))

    assert reader.taken == [FAR + 1, *range(1, 2_000)]
    assert (reader.cursor, reader.tracker.restarts) == ((1_999, None), 1)


def test_a_restart_with_gaps_is_one() -> None:
    reader = Reader(FAR).numbers(10, 20, 30, 40, 50)

    assert reader.taken == [10, 20, 30, 40, 50]
    assert reader.cursor == (40, 50)


def test_frames_without_events_neither_are_a_restart_nor_prevent_one() -> None:
    frames = [(seq, "" if seq % 3 else str(seq)) for seq in range(1, 13)]
    reader = Reader(5_000).read(frames)

    assert reader.taken == [3, 6, 9, 12]
    assert reader.cursor == (12, None)


def test_frames_without_events_move_the_cursor_on() -> None:
    assert Reader(5).read([(6, ""), (9, ""), (10, "")]).cursor == (10, None)
    assert Reader(None).read([(6, ""), (7, "")]).cursor == (7, None)
    assert Reader(5).read([(5, ""), (4, "")]).tracker.repeats == 2


def test_frames_without_events_do_not_end_the_doubts_after_a_kill() -> None:
    reader = Reader(5).read([(6, "6"), (9, "9"), (7, "")]).killed()
    reader.read([(8, ""), (9, "9"), (10, "10")])

    assert reader.taken == [6, 9, 10]


def test_a_cursor_in_the_future_begins_with_whatever_comes() -> None:
    reader = Reader(FAR).numbers(FAR + 1)
    reader.tracker.restart()

    assert reader.numbers(3, 4, 5).taken == [FAR + 1, 3, 4, 5]
    assert (reader.cursor, reader.tracker.restarts) == ((5, None), 1)


@pytest.mark.parametrize("damaged", [2**62, 700 + FAR, 104, 164])
def test_the_first_number_of_all_may_be_the_damaged_one(damaged: int) -> None:
    reader = Reader(None).numbers(damaged, 101)
    assert reader.cursor == (101, None)

    assert reader.numbers(102, 103).taken == [damaged, 101, 102, 103]


def test_a_relay_that_ignores_cursors_is_followed_once_it_is_live() -> None:
    reader = Reader(None).numbers(*range(1, 3_001))
    reader.tracker.connected()
    reader.numbers(*range(1, 3_051))

    assert reader.taken == list(range(1, 3_051))
    assert (reader.cursor, reader.tracker.repeats) == ((3_050, None), 3_000)


def test_a_relay_that_gives_known_frames_other_numbers_is_followed() -> None:
    reader = Reader(None).numbers(*range(9_000, 9_100))
    reader.tracker.connected()
    reader.read((seq, str(9_000 + seq)) for seq in range(50, 150))

    assert reader.taken == list(range(9_000, 9_150))
    assert reader.cursor == (149, None)


# History that comes again, and begins before what is kept


def fallen(last: int = 5_000, *lows: int) -> Reader:
    return Reader(last).numbers(*(lows or (1, 2, 3)))


def test_after_a_fall_no_number_is_taken_without_a_look_until_it_passes_the_old_one() -> None:
    reader = fallen()
    assert (reader.cursor, reader.tracker.fell_from) == ((3, None), 5_000)
    for seq in range(4, 5_000):
        assert reader.tracker.may_recur
        assert not reader.tracker.advance(seq)
        reader.numbers(seq)
    reader.numbers(5_000)
    assert (reader.tracker.may_recur, reader.tracker.fell_from) == (False, None)
    assert reader.tracker.advance(5_001)


def test_a_frame_of_before_the_fall_brings_the_cursor_back_and_puts_all_in_doubt_until_one_is_new() -> None:
    reader = Reader(None).numbers(*range(4_000, 5_001))
    reader.log = reader.log[500:]
    reader.tracker.connected()
    reader.numbers(*range(4_000, 4_500))
    assert reader.cursor == (4_499, None)

    for seq in (4_500, 4_501):
        reader.tracker.recur(seq)
        assert (reader.cursor, reader.tracker.may_recur) == ((seq, None), True)
    reader.tracker.recur(4_502)
    assert (reader.cursor, reader.tracker.may_recur) == ((5_000, None), False)
    reader.numbers(*range(4_500, 5_011))
    assert (len(reader.taken), len(set(reader.taken))) == (1_011, 1_011)
    assert (reader.cursor, reader.tracker.advance(5_011)) == ((5_010, None), True)


def test_when_nothing_of_before_the_fall_is_kept_numbers_are_taken_as_ever() -> None:
    reader = fallen()
    reader.tracker.forget_fall()

    assert reader.tracker.advance(4)
    assert reader.tracker.fell_from is None


def test_the_highest_number_that_was_fallen_from_counts() -> None:
    reader = fallen(5_000, 2_001, 2_002, 2_003)
    reader.numbers(1, 2, 3)

    assert reader.tracker.fell_from == 5_000
    assert reader.tracker.falls == 2


def test_a_kill_after_a_fall_forgets_neither_number() -> None:
    reader = fallen().killed()
    assert (reader.tracker.last, reader.tracker.may_recur) == (3, True)

    reader.numbers(4, 5)
    assert (reader.tracker.fell_from, reader.tracker.advance(6)) == (5_000, False)


def test_a_cursor_in_the_future_is_a_fall() -> None:
    reader = Reader(5_000).numbers(5_001)
    reader.tracker.restart()
    reader.numbers(7, 8)

    assert (reader.tracker.may_recur, reader.tracker.fell_from) == (True, 5_001)


@pytest.mark.parametrize("seqs", [(3, 3, 3, 3), (1, 2, 3), (5_000, 5_001, 5_002, 5_003), (9, 8, 7)])
def test_frames_of_before_the_fall_at_other_numbers_do_not_bring_the_cursor_back(seqs: Iterable[int]) -> None:
    reader = fallen()
    for seq in seqs:
        reader.tracker.recur(seq)
    assert reader.tracker.last == 3


# `kill -9` between any two frames


@pytest.mark.parametrize(
    "seqs",
    [
        [1, 2, 3, 4, 5, 6],
        [1, 2, 4, 3, 5, 6],
        [1, 2, 300_000, 3, 4, 5],
        [1, 5, 9, 10, 20],
        [1, 300_000, 400_000, 2, 3, 4],
        [10, 20, 19, 30, 31],
        [100, 101, 102, 1, 2, 3, 4, 5],
    ],
)
def test_a_kill_anywhere_repeats_and_loses_nothing(seqs: list[int]) -> None:
    for cut in range(1, len(seqs) + 1):
        reader = Reader(seqs[0] - 1).numbers(*seqs[:cut]).killed()
        last, provisional = reader.cursor
        assert last is not None
        assert last != provisional
        resent = next((i for i, seq in enumerate(seqs) if seq > last), len(seqs))
        reader.numbers(*seqs[min(resent, cut) :])
        assert reader.taken == seqs


@pytest.mark.parametrize("seqs", [[1, 2, 5, 3, 4, 6, 7], [1, 2, 4, 3, 5, 6], [1, 3, 2, 5, 4, 6]])
def test_a_kill_while_neighbours_are_swapped_repeats_nothing_when_they_come_in_order(seqs: list[int]) -> None:
    for cut in range(1, len(seqs) + 1):
        reader = Reader(0).numbers(*seqs[:cut]).killed()
        assert reader.tracker.last is not None
        reader.numbers(*range(reader.tracker.last + 1, 8))

        assert sorted(reader.taken) == list(range(1, 8))


# Laws


@given(st.integers(1, 2**40), st.lists(st.integers(1, 10_000_000), min_size=1, max_size=30))
def test_whatever_rises_is_taken(start: int, steps: list[int]) -> None:
    seqs = [start := start + step for step in steps]
    reader = Reader(seqs[0] - steps[0]).numbers(*seqs)

    assert reader.taken == seqs
    assert reader.tracker.gaps == sum(step > 1 for step in steps)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12))
def test_replays_of_any_part_give_each_number_once(replays: list[tuple[int, int]]) -> None:
    seqs: list[int] = []
    end = 50
    for back, forth in replays:
        seqs += range(max(50, end - back), end + forth)
        end += forth

    assert Reader(49).numbers(*seqs).taken == [*range(50, end)]


@given(st.integers(1, 2**40), st.integers(0, 19), st.integers(0, 62), st.booleans())
@settings(max_examples=400)
def test_one_flipped_bit_costs_no_frame(start: int, place: int, bit: int, is_resumed: bool) -> None:
    seqs = list(range(start, start + 20 + LIMITS.restart_frames))
    damaged = list(seqs)
    damaged[place] = max(1, seqs[place] ^ 1 << bit)
    reader = Reader(start - 1 if is_resumed else None)
    reader.read(zip(damaged, map(str, seqs), strict=True))

    assert reader.taken == seqs
    assert reader.tracker.last == seqs[-1]


@given(
    st.none() | st.integers(1, 2**40),
    st.lists(st.integers(1, 30) | st.integers(1, 2**63 - 1) | st.integers(FAR, FAR + 30), max_size=60),
)
@settings(max_examples=300)
def test_no_frame_with_new_content_is_ever_lost(last: int | None, seqs: list[int]) -> None:
    reader = Reader(last).read((seq, str(place)) for place, seq in enumerate(seqs))

    assert reader.taken == list(range(len(seqs)))
    assert reader.tracker.repeats == 0


@given(
    st.none() | st.integers(1, 40),
    st.lists(st.integers(1, 30) | st.integers(FAR, FAR + 30), max_size=60),
    st.sets(st.integers(0, 59)),
)
@settings(max_examples=300)
def test_resent_after_a_new_connection_or_a_kill_nothing_is_taken_twice(
    last: int | None, seqs: list[int], cuts: set[int]
) -> None:
    reader = Reader(last)
    for place, seq in enumerate(seqs):
        reader.numbers(seq)
        if place in cuts:
            reader = reader.killed()
            assert reader.tracker.last is None or reader.tracker.last in {*seqs, last}

    reader.tracker.connected()
    above = reader.tracker.last or 0
    reader.numbers(*(seq for seq in seqs if seq > above + 1), *seqs)
    assert set(reader.taken) == set(seqs)


# What an earlier process has stored above the cursor


def test_only_what_was_not_stored_is_new_above_the_cursor() -> None:
    tracker = SeqTracker(100, stored_to=105, unstored=(101, 104), resumed=True)
    tracker.connected()
    assert [seq for seq in range(99, 108) if not tracker.in_doubt(seq)] == [101, 104]
    assert [seq for seq in range(101, 108) if tracker.skip(seq)] == [101, 104, 106, 107]
    assert (tracker.last, tracker.repeats) == (107, 3)


def test_the_cursor_passes_what_was_stored_though_numbers_are_missing() -> None:
    tracker = SeqTracker(100, stored_to=110, unstored=(102,), resumed=True)
    tracker.connected()
    tracker.accept(102)
    for seq in (105, 106, 109, 110):
        tracker.repeat(seq)
    assert (tracker.last, tracker.unconfirmed) == (110, None)


def test_when_the_numbers_fall_nothing_of_before_counts() -> None:
    tracker = SeqTracker(100, stored_to=200, unstored=(101,))
    tracker.connected()
    for seq in (1, 2, 3):
        tracker.accept(seq)
    assert not tracker.in_doubt(4)


def test_known_messages_move_the_cursor_and_end_the_doubt() -> None:
    tracker = SeqTracker(100, resumed=True)
    tracker.connected()
    tracker.pass_over(101)
    assert not tracker.in_doubt(102)
    for seq in (50, 51, 52):
        tracker.pass_over(seq)
    assert (tracker.last, tracker.cursor, tracker.repeats) == (101, 52, 4)
    assert not tracker.advance(102)
    tracker.accept(102)
    assert tracker.cursor == 102
