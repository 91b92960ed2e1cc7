from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import (
    LIKE,
    account,
    commit,
    dag_cbor,
    delete,
    error,
    frame,
    from_json,
    identity,
    like,
)
from tests.fixtures import captured_frames, json_of

from jetstream.model.event import Key
from jetstream.upstream.intake import DOUBTS_MAX, DOUBTS_MIN, Intake, Taken
from jetstream.upstream.seq_tracker import SeqTracker


class Reader:
    """An intake, and the log that answers what it asks."""

    def __init__(self, sequence: SeqTracker, *, check_cid: bool = True) -> None:
        self.intake = Intake(sequence, check_cid=check_cid)
        self.sequence = sequence
        self.log: set[Key] = set()
        self.asked: list[Key] = []

    def take(self, frames: Iterable[bytes]) -> Taken:
        """Read all frames, in as many batches as the intake makes of them."""
        parts: list[Taken] = []
        left = list(frames)
        while left or not parts:
            part = self.intake.take(left)
            self.asked += part.asks
            if part.asks:
                self.intake.settle(part, dict.fromkeys(self.log.intersection(part.asks), 1))
            self.log.update(event.key for event in part.events)
            parts.append(part)
            del left[: part.frames]
        return merged(parts)


def intake(last: int | None = None, *, check_cid: bool = True) -> Reader:
    made = Reader(SeqTracker(last), check_cid=check_cid)
    made.sequence.connected()
    return made


def rkeys(taken: Taken) -> list[int]:
    """Return which likes came out: builders number them by their seq."""
    return [int(event.rkey) for event in taken.events if event.rkey]


def drops(taken: Taken) -> dict[str, int]:
    return {reason: count for reason, count in taken.drops.items() if count}


def test_events_come_in_upstream_order_with_the_cursor_after_them() -> None:
    taken = intake(4).take([commit(5, [like(1), like(2)]), identity(6), commit(7, [like(3)]), account(8)])

    assert rkeys(taken) == [1, 2, 3]
    assert [event.kind for event in taken.events] == [b"c", b"c", b"i", b"c", b"a"]
    assert (taken.seq, drops(taken), taken.notices, taken.too_big) == (8, {}, [], 0)
    assert taken.types == {"commit": 2, "identity": 1, "account": 1}


def test_nothing_comes_of_nothing() -> None:
    assert intake(4).take([]) == Taken(seq=4)
    assert intake().take([]) == Taken(seq=None)


def test_whatever_is_dropped_is_counted_and_moves_the_cursor_on() -> None:
    taken = intake(4).take(
        [
            commit(5, repo="nobody"),
            commit(6, rev="now"),
            frame("#new", {"seq": 7}),
            frame("#sync", {"seq": 8}),
            identity(9, time=None),
            commit(10, [like(1)], padding=b"x" * 5_000_000),
            dag_cbor({"op": 3}) + dag_cbor({"seq": 11}),
            b"noise",
            commit(None),
        ]
    )

    assert taken.events == []
    assert taken.seq == 11
    assert drops(taken) == {
        "did": 1,
        "rev": 1,
        "frame_type": 1,
        "malformed": 2,
        "frame_size": 1,
        "frame_header": 1,
        "frame_cbor": 1,
    }
    assert taken.types == {"commit": 4, "unknown": 3, "sync": 1, "identity": 1}


def test_repeats_are_dropped_and_counted_without_what_was_wrong_with_them() -> None:
    one = intake(2)
    one.take([commit(3), commit(4)])
    taken = one.take([commit(5), commit(5), commit(4, repo="nobody"), commit(3), commit(6)])

    assert rkeys(taken) == [5, 6]
    assert drops(taken) == {"repeat": 3}
    assert taken.seq == 6


def test_repeats_are_counted_once() -> None:
    one = intake(4)
    counts = [drops(one.take([raw])) for raw in (commit(5), commit(5), commit(6), commit(6))]

    assert counts == [{}, {"repeat": 1}, {}, {"repeat": 1}]


def test_the_ops_that_were_dropped_are_counted_beside_those_that_were_not() -> None:
    taken = intake(4).take([commit(5, [like(1), delete(f"{LIKE}/2")], blocks=b""), commit(6, tooBig=True)])

    assert rkeys(taken) == [2, 6]
    assert (drops(taken), taken.too_big) == ({"car": 1}, 1)


@pytest.mark.parametrize("name", ["FutureCursor", "", None, 1])
def test_errors_and_notices_are_handed_on_even_without_a_name(name: object) -> None:
    taken = intake(4).take([commit(5), error(name), frame("#info", {"name": name}), commit(6)])

    assert [notice.type for notice in taken.notices] == ["error", "info"]
    assert {notice.name for notice in taken.notices} == {name if isinstance(name, str) else ""}
    assert rkeys(taken) == [5, 6]
    assert taken.types == {"commit": 2, "error": 1, "info": 1}


def test_time_is_that_of_the_last_message_that_shows_it() -> None:
    frames = [
        commit(5, time="then"),
        identity(6, time="now"),
        frame("#sync", {"seq": 7}),
        commit(8, time=None),
    ]

    assert intake(4).take(frames).time == "now"
    assert intake(4).take(frames[2:]).time == ""


def test_cids_are_checked_unless_told_otherwise() -> None:
    bad = commit(5, [like(1)]).replace(b"\x61n\x01", b"\x61n\x02")

    assert drops(intake(4).take([bad])) == {"block_hash": 1}
    assert [event.body for event in intake(4, check_cid=False).take([bad]).events] == [
        b'{"$type":"app.bsky.feed.like","n":2}'
    ]


def test_a_damaged_seq_far_off_does_not_become_the_cursor() -> None:
    one = intake(4)

    assert one.take([commit(5), commit(6 + 2**40)]).seq == 5
    assert one.take([commit(7), commit(8)]).seq == 8


def test_a_new_sequence_is_delivered_at_once_and_becomes_the_cursor_when_it_rises() -> None:
    one = intake(5_000_000)
    first, second, third = (one.take([commit(seq)]) for seq in (1, 2, 3))

    assert (rkeys(first), rkeys(second), rkeys(third)) == ([1], [2], [3])
    assert (first.seq, second.seq, third.seq) == (5_000_000, 5_000_000, 3)


# What is asked of the log


def test_nothing_is_asked_about_frames_in_order_or_above_gaps() -> None:
    one = intake(4)

    assert rkeys(one.take([commit(5), commit(6), commit(9), commit(20), commit(21)])) == [5, 6, 9, 20, 21]
    assert one.asked == []


def test_what_is_before_a_frame_in_doubt_is_handed_over_before_the_log_is_asked() -> None:
    one = Intake(SeqTracker(4))
    one.sequence.connected()
    frames = [commit(5), commit(6), commit(3), commit(7)]
    first = one.take(frames)
    second = one.take(frames[first.frames :])

    assert (first.frames, rkeys(first), first.asks) == (2, [5, 6], [])
    assert (second.frames, rkeys(second)) == (2, [])
    assert [int(key[2]) for key in second.asks] == [3, 7]
    one.settle(second, {second.asks[0]: 1})
    assert (rkeys(second), second.admitted, drops(second), second.seq) == ([7], 1, {"repeat": 1}, 7)


def test_few_frames_are_looked_up_together_and_more_while_all_are_known() -> None:
    one = Intake(SeqTracker(5_000))
    one.sequence.connected()
    frames = [commit(seq) for seq in range(1, 100)]
    counts = []
    for _ in range(7):
        taken = one.take(frames)
        counts.append(len(taken.asks))
        one.settle(taken, dict.fromkeys(taken.asks, 1))
    assert counts == [DOUBTS_MIN, 6, 12, 24, 48, DOUBTS_MAX, DOUBTS_MAX]

    one.settle(one.take(frames), {})
    assert len(one.take(frames[:50]).asks) == DOUBTS_MIN


def test_a_frame_that_repeats_one_of_its_own_batch_is_known_without_the_log() -> None:
    one = intake(4)
    taken = one.take(frame for seq in range(5, 50) for frame in (commit(seq), commit(seq)))

    assert rkeys(taken) == [*range(5, 50)]
    assert one.asked == []


def test_frames_in_doubt_may_repeat_each_other() -> None:
    assert rkeys(intake(100).take([commit(3), commit(3), commit(4), commit(3)])) == [3, 4]


def test_identity_and_account_frames_are_known_by_their_bodies() -> None:
    one = intake(4)
    one.take([identity(5), account(6)])

    assert one.take([identity(5), account(6)]).events == []
    assert len(one.take([identity(5, handle="new.example"), account(6, active=False)]).events) == 2


def test_frames_without_a_number_among_those_in_doubt_are_counted() -> None:
    taken = intake(100).take([commit(3), b"noise", frame("#info", {"name": "OutdatedCursor"}), commit(4)])

    assert (rkeys(taken), drops(taken)) == ([3, 4], {"frame_cbor": 1})
    assert [notice.name for notice in taken.notices] == ["OutdatedCursor"]
    assert (taken.frames, taken.admitted, taken.without_seq) == (4, 2, 2)


def test_decoding_stops_when_its_time_is_over_after_one_frame_at_least() -> None:
    now = iter(range(100))
    one = Intake(SeqTracker(4), clock=lambda: next(now))
    one.sequence.connected()
    frames = [commit(seq) for seq in range(5, 20)]
    counts = [one.take(frames, 3).frames, one.take(frames[5:], 0).frames, one.take(frames[6:], 8).frames]

    assert counts == [5, 1, 4]
    assert one.take(frames, 10).frames == 2  # in doubt


# Damage

HERE = 5_000_000_000  # as production counts: eight bytes of a frame, any bit of which may flip
VICTIM = commit(HERE, [like(6), delete(f"{LIKE}/60")])
BEFORE = commit(HERE - 1)
AFTER = [commit(HERE + number) for number in range(1, 5)]


def flipped(raw: bytes) -> Iterator[bytes]:
    for place in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[place // 8] ^= 1 << place % 8
        yield bytes(damaged)


def others(taken: Taken) -> list[int]:
    """Return what was taken of the frames around the damaged one."""
    return [int(event.rkey) for event in taken.events if event.rkey.isdigit() and len(event.rkey) == 10]


def test_a_frame_with_any_bit_flipped_costs_no_other_frame() -> None:
    for damaged in flipped(VICTIM):
        taken = intake(HERE - 2).take([BEFORE, damaged, *AFTER])

        assert others(taken) == [HERE - 1, *range(HERE + 1, HERE + 5)]
        assert taken.seq == HERE + 4
        assert sum(taken.drops.values()) + len(taken.events) >= 6


@pytest.mark.parametrize("last", [None, HERE - 1])
def test_the_first_frame_with_any_bit_flipped_costs_no_other_frame(last: int | None) -> None:
    for damaged in flipped(VICTIM):
        taken = intake(last).take([damaged, *AFTER])

        assert others(taken) == [*range(HERE + 1, HERE + 5)]
        assert taken.seq == HERE + 4


def test_a_frame_cut_anywhere_costs_no_other_frame() -> None:
    for size in range(len(VICTIM)):
        taken = intake(HERE - 2).take([BEFORE, VICTIM[:size], *AFTER])

        assert others(taken) == [HERE - 1, *range(HERE + 1, HERE + 5)]
        assert (taken.seq, drops(taken)) == (HERE + 4, {"frame_cbor": 1})


@given(st.lists(st.integers(0, 11), max_size=8), st.integers(0, 3))
@settings(max_examples=40)
def test_how_frames_are_parted_does_not_matter(cuts: list[int], damaged: int) -> None:
    frames = [
        commit(5),
        commit(6),
        commit(6),
        commit(7 + 2**40),
        commit(7),
        b"noise",
        error("X"),
        commit(8),
        commit(3),
    ]
    frames += [identity(9), commit(12, [like(12), like(13)]), account(13)]
    frames[damaged] = frames[damaged][:-1]
    one, other = intake(4), intake(4)
    bounds = [0, *sorted(cuts), len(frames)]
    parts = [one.take(frames[a:b]) for a, b in pairwise(bounds)]

    assert merged(parts) == other.take(frames)


def merged(parts: Iterable[Taken]) -> Taken:
    whole = Taken()
    for part in parts:
        for name in {field.name for field in fields(Taken)} - {"seq", "provisional", "fell_from", "time"}:
            setattr(whole, name, getattr(whole, name) + getattr(part, name))
        whole.seq, whole.provisional, whole.fell_from = part.seq, part.provisional, part.fell_from
        whole.time = part.time or whole.time
    return whole


# Captured frames and published scenarios


def test_the_captured_frames_follow_each_other() -> None:
    one = intake()
    taken = one.take(captured_frames())

    assert len(taken.events) == 92
    assert (drops(taken), one.sequence.gaps, taken.types) == ({}, 0, {"commit": 90})
    assert one.take(captured_frames()).events == []


def test_numbers_that_a_strict_relay_refuses_cost_no_event_and_repeat_none() -> None:
    messages = json_of("relay-scenarios/seq_ordering.json")["messages"]
    frames = [
        dag_cbor(one["frame"]["header"]) + dag_cbor(from_json(one["frame"]["body"])) for one in messages
    ]
    taken = intake().take(frames)

    # Of one number, but not of one content; and one commit under two numbers.
    assert [one["drop"] for one in messages] == [False, True, True, False]
    assert [event.kind for event in taken.events] == [b"i", b"a", b"c"]
    assert (taken.seq, drops(taken)) == (1000, {"repeat": 1})
