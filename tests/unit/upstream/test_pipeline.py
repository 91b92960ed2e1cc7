from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import (
    LIKE,
    account,
    commit,
    create,
    dag_cbor,
    delete,
    error,
    frame,
    from_json,
    identity,
    like,
)
from tests.fixtures import captured_frames, json_of

from jetstream.limits import UpstreamLimits
from jetstream.model.event import Key
from jetstream.upstream.envelope import read_envelope
from jetstream.upstream.extract import extract
from jetstream.upstream.pipeline import DecodedBatch, Pipeline
from jetstream.upstream.seq_tracker import SeqTracker

LIMITS = UpstreamLimits()


class Reader:
    """A pipeline, and the log that it asks."""

    def __init__(self, tracker: SeqTracker, *, check_cid: bool = True) -> None:
        self.pipeline = Pipeline(tracker, time.monotonic, check_cid=check_cid)
        self.tracker = tracker
        self.log: set[Key] = set()
        self.asked: list[Key] = []

    def read(self, frames: Iterable[bytes]) -> DecodedBatch:
        """Read all frames, in as many batches as the pipeline makes of them."""
        parts: list[DecodedBatch] = []
        left = list(frames)
        while left or not parts:
            part = self.pipeline.read(left)
            self.asked += part.lookups
            if part.lookups:
                self.pipeline.resolve(part, dict.fromkeys(self.log.intersection(part.lookups), 1))
            self.log.update(event.key for event in part.events)
            parts.append(part)
            del left[: part.frames]
        return merged(parts)


def reading(last: int | None = None, *, check_cid: bool = True) -> Reader:
    made = Reader(SeqTracker(last), check_cid=check_cid)
    made.tracker.connected()
    return made


def rkeys(taken: DecodedBatch) -> list[int]:
    """Return which likes came out: builders number them by their seq."""
    return [int(event.rkey) for event in taken.events if event.rkey]


def drops(taken: DecodedBatch) -> dict[str, int]:
    return {reason: count for reason, count in taken.drops.items() if count}


def test_events_come_in_upstream_order_with_the_cursor_after_them() -> None:
    taken = reading(4).read([commit(5, [like(1), like(2)]), identity(6), commit(7, [like(3)]), account(8)])

    assert rkeys(taken) == [1, 2, 3]
    assert [event.kind for event in taken.events] == [b"c", b"c", b"i", b"c", b"a"]
    assert (taken.seq, drops(taken), taken.notices, taken.too_big) == (8, {}, [], 0)
    assert taken.types == {"commit": 2, "identity": 1, "account": 1}


def test_nothing_comes_of_nothing() -> None:
    assert reading(4).read([]) == DecodedBatch(seq=4)
    assert reading().read([]) == DecodedBatch(seq=None)


def test_whatever_is_dropped_is_counted_and_moves_the_cursor_on() -> None:
    taken = reading(4).read(
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
        "malformed": 3,
        "frame_size": 1,
        "frame_header": 1,
        "frame_cbor": 1,
    }
    assert taken.types == {"commit": 4, "unknown": 3, "sync": 1, "identity": 1}


def test_repeats_are_dropped_and_counted_without_what_was_wrong_with_them() -> None:
    one = reading(2)
    one.read([commit(3), commit(4)])
    taken = one.read([commit(5), commit(5), commit(4, repo="nobody"), commit(3), commit(6)])

    assert rkeys(taken) == [5, 6]
    assert drops(taken) == {"repeat": 3}
    assert taken.seq == 6


def test_repeats_are_counted_once() -> None:
    one = reading(4)
    counts = [drops(one.read([raw])) for raw in (commit(5), commit(5), commit(6), commit(6))]

    assert counts == [{}, {"repeat": 1}, {}, {"repeat": 1}]


def test_the_ops_that_were_dropped_are_counted_beside_those_that_were_not() -> None:
    taken = reading(4).read([commit(5, [like(1), delete(f"{LIKE}/2")], blocks=b""), commit(6, tooBig=True)])

    assert rkeys(taken) == [2, 6]
    assert (drops(taken), taken.too_big) == ({"car": 1}, 1)


@pytest.mark.parametrize("value", [None, 1, "true", False])
def test_a_commit_is_too_big_if_its_producer_says_so(value: object) -> None:
    assert reading(4).read([commit(5, tooBig=value), commit(6, tooBig=True, rev="now")]).too_big == 0


@pytest.mark.parametrize("name", ["FutureCursor", "", None, 1])
def test_errors_and_notices_are_handed_on_even_without_a_name(name: object) -> None:
    taken = reading(4).read([commit(5), error(name), frame("#info", {"name": name}), commit(6)])

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

    assert reading(4).read(frames).time == "now"
    assert reading(4).read(frames[2:]).time == ""


def test_cids_are_checked_unless_told_otherwise() -> None:
    bad = commit(5, [like(1)]).replace(b"\x61n\x01", b"\x61n\x02")

    assert drops(reading(4).read([bad])) == {"block_hash": 1}
    assert [event.body for event in reading(4, check_cid=False).read([bad]).events] == [
        b'{"$type":"app.bsky.feed.like","n":2}'
    ]


def test_a_damaged_seq_far_off_does_not_become_the_cursor() -> None:
    one = reading(4)

    assert one.read([commit(5), commit(6 + 2**40)]).seq == 5
    assert one.read([commit(7), commit(8)]).seq == 8


def test_a_new_sequence_is_delivered_at_once_and_becomes_the_cursor_when_it_rises() -> None:
    one = reading(5_000_000)
    first, second, third = (one.read([commit(seq)]) for seq in (1, 2, 3))

    assert (rkeys(first), rkeys(second), rkeys(third)) == ([1], [2], [3])
    assert (first.seq, second.seq, third.seq) == (5_000_000, 5_000_000, 3)


@pytest.mark.parametrize("seqs", [[5, 7, 6, 8, 10, 9, 11], [5, 7, 8, 6, 9], [5, 8, 7, 6, 9], [6, 5, 7]])
def test_swapped_neighbours_are_all_events(seqs: list[int]) -> None:
    taken = reading(4).read(map(commit, seqs))

    assert (rkeys(taken), drops(taken)) == (seqs, {})


# What is asked of the log


def test_nothing_is_asked_about_frames_in_order_or_above_gaps() -> None:
    one = reading(4)

    assert rkeys(one.read([commit(5), commit(6), commit(9), commit(20), commit(21)])) == [5, 6, 9, 20, 21]
    assert one.asked == []


def test_what_is_before_a_frame_in_doubt_is_handed_over_before_the_log_is_asked() -> None:
    one = Pipeline(SeqTracker(4), time.monotonic)
    one.tracker.connected()
    frames = [commit(5), commit(6), commit(3), commit(7)]
    first = one.read(frames)
    second = one.read(frames[first.frames :])

    assert (first.frames, rkeys(first), first.lookups) == (2, [5, 6], [])
    assert (second.frames, rkeys(second)) == (0, [])
    assert [int(key[2]) for key in second.lookups] == [3, 7]
    one.resolve(second, {second.lookups[0]: 1})
    assert (second.frames, rkeys(second), second.accepted) == (2, [7], 1)
    assert (drops(second), second.seq) == ({"repeat": 1}, 7)


def test_few_frames_are_looked_up_together_and_more_while_all_are_known() -> None:
    one = Pipeline(SeqTracker(5_000), time.monotonic)
    one.tracker.connected()
    frames = [commit(seq) for seq in range(1, 100)]
    counts = []
    for _ in range(7):
        taken = one.read(frames)
        counts.append(len(taken.lookups))
        one.resolve(taken, dict.fromkeys(taken.lookups, 1))
    assert counts == [
        LIMITS.lookup_frames_min,
        6,
        12,
        24,
        48,
        LIMITS.lookup_frames_max,
        LIMITS.lookup_frames_max,
    ]

    one.resolve(one.read(frames), {})
    assert len(one.read(frames[:50]).lookups) == 3


def test_a_frame_that_repeats_one_of_its_own_batch_is_known_without_the_log() -> None:
    one = reading(4)
    taken = one.read(frame for seq in range(5, 50) for frame in (commit(seq), commit(seq)))

    assert rkeys(taken) == [*range(5, 50)]
    assert one.asked == []


def test_frames_in_doubt_may_repeat_each_other() -> None:
    assert rkeys(reading(100).read([commit(3), commit(3), commit(4), commit(3)])) == [3, 4]


def test_identity_and_account_frames_are_known_by_their_bodies() -> None:
    one = reading(4)
    one.read([identity(5), account(6)])

    assert one.read([identity(5), account(6)]).events == []
    assert len(one.read([identity(5, handle="new.example"), account(6, active=False)]).events) == 2


def test_frames_without_a_number_among_those_in_doubt_are_counted() -> None:
    taken = reading(100).read([commit(3), b"noise", frame("#info", {"name": "OutdatedCursor"}), commit(4)])

    assert (rkeys(taken), drops(taken)) == ([3, 4], {"frame_cbor": 1})
    assert [notice.name for notice in taken.notices] == ["OutdatedCursor"]
    assert (taken.frames, taken.accepted, taken.without_seq) == (4, 2, 2)


def test_decoding_stops_when_its_time_is_over_after_one_frame_at_least() -> None:
    now = iter(range(100))
    one = Pipeline(SeqTracker(4), lambda: next(now))
    one.tracker.connected()
    frames = [commit(seq) for seq in range(5, 20)]
    counts = [one.read(frames, 3).frames, one.read(frames[5:], 0).frames, one.read(frames[6:], 8).frames]

    assert counts == [5, 1, 4]
    assert len(one.read(frames, 10).lookups) == 2  # in doubt


def test_frames_in_doubt_are_decoded_until_their_time_is_over_and_the_rest_with_the_next_batch() -> None:
    now = iter(range(100))
    one = Pipeline(SeqTracker(100), lambda: next(now))
    one.tracker.connected()
    frames = [commit(1), commit(2), commit(3)]
    batch = one.read(frames)
    one.resolve(batch, {}, 3)
    assert (len(frames), batch.frames, rkeys(batch), batch.types) == (3, 2, [1, 2], {"commit": 2})

    rest = one.read(frames[2:])
    one.resolve(rest, {}, 0)
    assert (rest.frames, rkeys(rest), rest.seq) == (1, [3], 3)


# Repeats cost no decoding


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The records that were decoded."""
    records: list[bytes] = []

    def to_json(raw: bytes, *_: object) -> bytes:
        records.append(raw)
        return b"{}"

    monkeypatch.setattr("jetstream.upstream.extract.to_json", to_json)
    return records


def test_the_records_of_a_repeat_are_not_decoded(decoded: list[bytes]) -> None:
    one = reading(4)
    frames = [commit(5), commit(6, [like(6), like(60)]), commit(7)]
    one.read(frames)
    assert len(decoded) == 4

    one.tracker.connected()
    again = one.read([*frames, *frames, commit(8)])
    assert (rkeys(again), drops(again)) == ([8], {"repeat": 6})
    assert len(decoded) == 5


def test_the_records_of_history_that_comes_again_are_not_decoded(decoded: list[bytes]) -> None:
    one = reading(5_000)
    one.read([commit(1), commit(2), commit(3)])
    one.pipeline.history_keys = {event.key for event in extract(read_envelope(commit(4)))[0]}
    decoded.clear()

    assert rkeys(one.read([commit(4)])) == []
    assert decoded == []
    assert rkeys(one.read([commit(5)])) == [5]


def test_a_frame_in_doubt_is_decoded_once_the_log_does_not_hold_it(decoded: list[bytes]) -> None:
    one = Pipeline(SeqTracker(100), time.monotonic)
    one.tracker.connected()
    batch = one.read([commit(3), commit(4)])
    assert (len(batch.lookups), decoded) == (2, [])

    one.resolve(batch, {batch.lookups[0]: 1})
    assert (rkeys(batch), len(decoded)) == ([4], 1)


def test_a_frame_is_known_by_any_of_its_events() -> None:
    """Retention may end within a commit, and an op whose record is dropped is never in the log."""
    one = reading(100)
    whole = commit(3, [create(f"{LIKE}/1", [1.5]), like(2), like(3)])
    assert rkeys(one.read([whole])) == [2, 3]
    one.log = {key for key in one.log if key[2] == b"3"}

    assert rkeys(one.read([whole])) == []


def test_a_frame_in_doubt_whose_records_are_all_dropped_is_judged_by_its_number() -> None:
    one = reading(100)
    empty = [commit(seq, [create(f"{LIKE}/{seq}", [1.5])]) for seq in (3, 4, 5, 101)]
    batch = one.read(empty)

    assert (batch.events, batch.seq, one.tracker.restarts) == ([], 101, 0)
    assert drops(batch) == {"repeat": 3, "record_type": 1}


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


def others(taken: DecodedBatch) -> list[int]:
    """Return what was taken of the frames around the damaged one."""
    return [int(event.rkey) for event in taken.events if event.rkey.isdigit() and len(event.rkey) == 10]


def test_a_frame_with_any_bit_flipped_costs_no_other_frame() -> None:
    for damaged in flipped(VICTIM):
        taken = reading(HERE - 2).read([BEFORE, damaged, *AFTER])

        assert others(taken) == [HERE - 1, *range(HERE + 1, HERE + 5)]
        assert taken.seq == HERE + 4
        assert sum(taken.drops.values()) + len(taken.events) >= 6


@pytest.mark.parametrize("last", [None, HERE - 1])
def test_the_first_frame_with_any_bit_flipped_costs_no_other_frame(last: int | None) -> None:
    for damaged in flipped(VICTIM):
        taken = reading(last).read([damaged, *AFTER])

        assert others(taken) == [*range(HERE + 1, HERE + 5)]
        assert taken.seq == HERE + 4


def test_a_frame_cut_anywhere_costs_no_other_frame() -> None:
    for size in range(len(VICTIM)):
        taken = reading(HERE - 2).read([BEFORE, VICTIM[:size], *AFTER])

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
    one, other = reading(4), reading(4)
    bounds = [0, *sorted(cuts), len(frames)]
    parts = [one.read(frames[a:b]) for a, b in pairwise(bounds)]

    assert merged(parts) == other.read(frames)


def merged(parts: Iterable[DecodedBatch]) -> DecodedBatch:
    whole = DecodedBatch()
    for part in parts:
        for name in {field.name for field in fields(DecodedBatch)} - {
            "seq",
            "provisional",
            "fell_from",
            "time",
        }:
            setattr(whole, name, added(getattr(whole, name), getattr(part, name)))
        whole.seq, whole.provisional, whole.fell_from = part.seq, part.provisional, part.fell_from
        whole.time = part.time or whole.time
    return whole


def added(one: Any, other: Any) -> Any:
    """Return the sum of two values, or of two counts by name."""
    return Counter(one) + Counter(other) if isinstance(one, dict) else one + other


# Captured frames and published scenarios


def test_the_captured_frames_follow_each_other() -> None:
    one = reading()
    taken = one.read(captured_frames())

    assert len(taken.events) == 92
    assert (drops(taken), one.tracker.gaps, taken.types) == ({}, 0, {"commit": 90})
    assert one.read(captured_frames()).events == []


def test_numbers_that_a_strict_relay_refuses_cost_no_event_and_repeat_none() -> None:
    messages = json_of("relay-scenarios/seq_ordering.json")["messages"]
    frames = [
        dag_cbor(one["frame"]["header"]) + dag_cbor(from_json(one["frame"]["body"])) for one in messages
    ]
    taken = reading().read(frames)

    # Of one number, but not of one content; and one commit under two numbers.
    assert [one["drop"] for one in messages] == [False, True, True, False]
    assert [event.kind for event in taken.events] == [b"i", b"a", b"c"]
    assert (taken.seq, drops(taken)) == (1000, {"repeat": 1})
