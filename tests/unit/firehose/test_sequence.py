from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jetstream.firehose.sequence import ANEW, ANEW_FRAMES, FAR_REPEATS_MAX, JUMP, Sequence

FAR = 50_000_000


def fed(last: int | None, *seqs: int) -> tuple[Sequence[str], list[int]]:
    """Feed one connection and return the sequence with the numbers that were taken, in order."""
    sequence = Sequence[str](last)
    sequence.connected()
    return sequence, taken(sequence, *seqs)


def taken(sequence: Sequence[str], *seqs: int) -> list[int]:
    """Feed frames that are told apart by their place and number."""
    frames = [(seq, f"{place}:{seq}") for place, seq in enumerate(seqs)]
    return [int(item.partition(":")[2]) for item in admitted(sequence, frames)]


def admitted(sequence: Sequence[str], frames: Iterable[tuple[int, str]]) -> list[str]:
    items: list[str] = []
    for seq, item in frames:
        if sequence.follows(seq):
            items.append(item)
        else:
            items += sequence.admit(seq, item)
    return items


# The table, row by row


def test_numbers_that_follow_each_other_are_taken() -> None:
    sequence, numbers = fed(100, 101, 102, 103)

    assert numbers == [101, 102, 103]
    assert (sequence.last, sequence.gaps, sequence.jumps, sequence.repeats) == (103, 0, 0, 0)


@pytest.mark.parametrize("first", [1, 7_000_000_000, 2**63 - 10])
def test_without_a_cursor_any_number_begins(first: int) -> None:
    sequence, numbers = fed(None, first, first + 1, first + 2)

    assert numbers == [first, first + 1, first + 2]
    assert (sequence.last, sequence.gaps, sequence.jumps) == (first + 2, 0, 0)


@pytest.mark.parametrize("gap", [2, 1_000, ANEW, JUMP])
def test_gaps_are_taken_and_counted_once(gap: int) -> None:
    sequence, numbers = fed(100, 101, 101 + gap, 102 + gap)

    assert numbers == [101, 101 + gap, 102 + gap]
    assert (sequence.last, sequence.gaps, sequence.jumps) == (102 + gap, 1, 0)


@pytest.mark.parametrize("seqs", [(100,), (99,), (1,), (101, 101), (101, 100, 99, 101), (101, 102, 101, 102)])
def test_repeats_are_skipped_and_counted(seqs: tuple[int, ...]) -> None:
    sequence, numbers = fed(100, *seqs)

    assert numbers == sorted(set(seqs) - set(range(101)))
    assert sequence.repeats == len(seqs) - len(numbers)
    assert sequence.last == max(100, *seqs)


@pytest.mark.parametrize(
    ("seqs", "expected"),
    [
        ([10, 20, 15, 30], [10, 20, 30]),
        ([1, 100, 50, 101], [1, 100, 101]),
        ([1, 2, 5, 3, 6], [1, 2, 5, 6]),
        ([1, 3, 2, 4], [1, 3, 4]),
    ],
)
def test_numbers_out_of_turn_are_repeats(seqs: list[int], expected: list[int]) -> None:
    sequence, numbers = fed(seqs[0] - 1, *seqs)

    assert numbers == expected
    assert sequence.repeats == 1


def test_the_same_frame_again_after_a_gap_is_a_repeat() -> None:
    sequence = Sequence[str](0)
    frames = [(1, "one"), (3, "three"), (3, "three"), (4, "four")]

    assert admitted(sequence, frames) == ["one", "three", "four"]
    assert sequence.repeats == 1


def test_a_number_far_above_is_taken_but_not_believed() -> None:
    sequence, numbers = fed(100, 101, 101 + FAR)

    assert numbers == [101, 101 + FAR]
    assert (sequence.last, sequence.jumps) == (101, 1)


def test_a_single_number_far_above_changes_nothing() -> None:
    sequence, numbers = fed(100, 101, 102 + FAR, 103, 104)

    assert numbers == [101, 102 + FAR, 103, 104]
    assert sequence.last == 104


@pytest.mark.parametrize("step", [1, 2, 1_000, JUMP])
def test_a_jump_is_believed_when_the_next_frame_continues_it(step: int) -> None:
    sequence, numbers = fed(100, 101 + FAR, 101 + FAR + step)

    assert numbers == [101 + FAR, 101 + FAR + step]
    assert (sequence.last, sequence.jumps) == (101 + FAR + step, 1)


def test_a_jump_is_not_believed_for_another_jump() -> None:
    sequence, numbers = fed(100, 101 + FAR, 101 + 3 * FAR, 101 + 2 * FAR)

    assert numbers == [101 + FAR, 101 + 3 * FAR, 101 + 2 * FAR]
    assert (sequence.last, sequence.jumps) == (100, 3)


def test_a_jump_is_not_believed_for_being_repeated() -> None:
    sequence, numbers = fed(100, 101 + FAR, 101 + FAR, 100 + FAR)

    assert numbers == [101 + FAR, 100 + FAR]
    assert (sequence.last, sequence.repeats) == (100, 1)


def test_single_numbers_far_below_are_repeats() -> None:
    sequence, numbers = fed(FAR, FAR + 1, 5, FAR + 2, 6, FAR + 3)

    assert numbers == [FAR + 1, FAR + 2, FAR + 3]
    assert (sequence.last, sequence.repeats, sequence.restarts) == (FAR + 3, 2, 0)


def test_a_relay_that_began_anew_is_followed_from_its_first_frame() -> None:
    sequence, numbers = fed(FAR, 1, 2, 3, 4, 5)

    assert numbers == [1, 2, 3, 4, 5]
    assert (sequence.last, sequence.restarts, sequence.repeats) == (5, 1, 0)


def test_what_may_be_a_new_beginning_waits_for_more() -> None:
    sequence, numbers = fed(FAR, *range(1, ANEW_FRAMES))

    assert numbers == []
    assert sequence.last == FAR
    assert taken(sequence, ANEW_FRAMES) == [*range(1, ANEW_FRAMES + 1)]


@pytest.mark.parametrize(
    "seqs", [(1, 3, 2, 4, 5, 6), (5, 5, 6, 7, 8), (FAR, 1, 2, 3), (1, 2, FAR + 1, 3, 4, 5)]
)
def test_a_connection_that_shows_anything_else_has_not_begun_anew(seqs: tuple[int, ...]) -> None:
    sequence, numbers = fed(FAR, *seqs)

    assert numbers == [seq for seq in seqs if seq > FAR]
    assert sequence.restarts == 0
    assert sequence.repeats == len(seqs) - len(numbers)


def test_no_less_than_a_million_below_is_a_new_beginning() -> None:
    near = range(FAR - ANEW, FAR - ANEW + 10)

    assert fed(FAR, near[0])[0].repeats == 1
    assert fed(FAR, *near)[1] == []
    assert fed(FAR, *range(FAR - ANEW - 10, FAR - ANEW))[1] == list(range(FAR - ANEW - 10, FAR - ANEW))


def test_what_was_held_at_the_end_of_a_connection_is_counted() -> None:
    sequence, numbers = fed(FAR, 1, 2)
    sequence.connected()

    assert numbers == []
    assert sequence.repeats == 2
    assert taken(sequence, FAR + 1) == [FAR + 1]


def test_a_relay_that_renumbers_in_mid_connection_is_lost_and_then_found() -> None:
    sequence, numbers = fed(FAR, FAR + 1, *range(1, FAR_REPEATS_MAX))
    assert numbers == [FAR + 1]
    assert not sequence.lost

    assert taken(sequence, FAR_REPEATS_MAX) == []
    assert sequence.lost

    sequence.connected()
    assert not sequence.lost
    assert taken(sequence, 2_001, 2_002, 2_003) == [2_001, 2_002, 2_003]


def test_a_replay_of_old_frames_does_not_lose_the_connection() -> None:
    sequence, _ = fed(FAR, FAR + 1, *range(1, FAR_REPEATS_MAX), FAR + 2, *range(1, FAR_REPEATS_MAX))

    assert not sequence.lost
    assert sequence.last == FAR + 2


# The first number of all


@pytest.mark.parametrize("damaged", [2**62, 700 + JUMP + 1, 1])
def test_a_damaged_first_number_far_off_is_replaced_by_the_next(damaged: int) -> None:
    first = 700 if damaged > 700 else FAR
    sequence, numbers = fed(None, damaged, first)

    assert numbers == [damaged, first]
    assert taken(sequence, first + 1, first + 2) == [first + 1, first + 2]
    assert sequence.last == first + 2


@pytest.mark.parametrize("damaged", [104, 164, 100 + ANEW // 2])
def test_a_damaged_first_number_above_is_found_out(damaged: int) -> None:
    sequence, numbers = fed(None, damaged, 101, 102, 103, 104)

    assert numbers == [damaged, 101, 102, 103, 104]
    assert (sequence.last, sequence.restarts) == (104, 1)


def test_a_repeat_right_after_the_first_number_is_one() -> None:
    for seqs in ([10, 10, 11], [10, 9, 11], [10, 10, 9, 8, 11], [10, 8, 9, 10, 11]):
        sequence = Sequence[str](None)
        assert admitted(sequence, [(seq, str(seq)) for seq in seqs]) == ["10", "11"]
        assert sequence.repeats == len(seqs) - 2


def test_a_cursor_in_the_future_begins_anew() -> None:
    sequence, _ = fed(FAR, FAR + 1)
    sequence.begin_anew()
    sequence.connected()
    cursor = sequence.last

    assert cursor is None
    assert taken(sequence, 3, 4, 5) == [3, 4, 5]
    assert (sequence.last, sequence.restarts) == (5, 1)


# Laws

STARTS = st.integers(1, 2**40)


@given(STARTS, st.lists(st.integers(1, JUMP), min_size=1, max_size=30))
def test_whatever_rises_is_taken(start: int, steps: list[int]) -> None:
    seqs = [start := start + step for step in steps]
    sequence, numbers = fed(seqs[0] - steps[0], *seqs)

    assert numbers == seqs
    assert sequence.gaps == sum(step > 1 for step in steps)


@given(STARTS, st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12))
def test_replays_of_any_part_give_each_number_once(start: int, replays: list[tuple[int, int]]) -> None:
    seqs: list[int] = []
    end = start
    for back, forth in replays:
        seqs += range(max(start, end - back), end + forth)
        end += forth

    assert fed(start - 1, *seqs)[1] == [*range(start, end)]


@given(STARTS, st.integers(0, 19), st.integers(0, 62), st.booleans())
@settings(max_examples=400)
def test_one_flipped_bit_costs_no_other_frame(start: int, place: int, bit: int, is_resumed: bool) -> None:
    seqs = list(range(start, start + 20 + ANEW_FRAMES))
    damaged = seqs[place] ^ 1 << bit
    frames = [
        (damaged if n == place else seq, str(seq)) for n, seq in enumerate(seqs) if n != place or damaged
    ]
    sequence = Sequence[str](start - 1 if is_resumed else None)
    sequence.connected()
    items = admitted(sequence, frames)

    assert [item for item in items if item != str(seqs[place])] == [
        str(seq) for seq in seqs if seq != seqs[place]
    ]
    assert items.count(str(seqs[place])) <= 1
    assert sequence.last == seqs[-1]


@given(
    st.none() | STARTS,
    st.lists(st.integers(1, 30) | st.integers(1, 2**63 - 1) | st.integers(FAR, FAR + 30), max_size=60),
)
@settings(max_examples=300)
def test_every_frame_is_taken_once_or_counted(last: int | None, seqs: list[int]) -> None:
    sequence = Sequence[str](last)
    items = admitted(sequence, [(seq, str(place)) for place, seq in enumerate(seqs)])
    sequence.connected()

    assert len(set(items)) == len(items)
    assert len(items) + sequence.repeats == len(seqs)
    assert items == sorted(items, key=int)


@given(st.none() | st.just(1), st.lists(st.integers(1, 9) | st.integers(FAR, FAR + 2), max_size=40))
@example(1, [2, FAR, 3, FAR])
def test_the_short_cut_changes_nothing(last: int | None, seqs: list[int]) -> None:
    frames = [(seq, str(place)) for place, seq in enumerate(seqs)]
    quick, slow = Sequence[str](last), Sequence[str](last)

    assert admitted(quick, frames) == [item for seq, name in frames for item in slow.admit(seq, name)]
    assert (quick.last, quick.gaps, quick.jumps, quick.repeats) == (
        slow.last,
        slow.gaps,
        slow.jumps,
        slow.repeats,
    )
