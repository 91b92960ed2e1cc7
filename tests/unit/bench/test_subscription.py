from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.bench.streams import (
    DICTIONARY,
    POST,
    Sent,
    compressed,
    event,
    stream_of,
    text,
    truth_of,
)

from jetstream.bench import stream
from jetstream.bench.compression import decompressor
from jetstream.bench.mix import EVERYTHING, Wanted
from jetstream.bench.subscription import (
    Position,
    Readings,
    Subscription,
    check_all,
    check_bytes,
    check_start,
    find_position,
)

PING = b"\x89\x00"
EVENTS = [event(time, f"did:plc:{time % 3}", padding=time % 40) for time in range(1_000, 1_060)]
TRUTH = truth_of(EVENTS)


def subscription(**more: object) -> Subscription:
    return Subscription("somebody", EVERYTHING, Readings(), **more)  # type: ignore[arg-type]


def counts(one: Subscription) -> dict[str, int]:
    return dict(one.readings.findings.counts)


@given(st.lists(st.integers(1, 400), min_size=1))
def test_a_checked_stream_is_the_same_in_any_pieces(sizes: list[int]) -> None:
    one, data = subscription(), stream_of(EVENTS)
    for size in sizes:
        one.receive(data[:size], 0)
        data = data[size:]
    one.receive(data, 0)
    check_all(one, TRUTH)
    assert (one.events, one.size) == (len(EVENTS), len(stream_of(EVENTS)))
    assert counts(one) == {}


def test_a_compressed_stream_is_read_with_its_dictionary() -> None:
    messages = [sent.frame[2:] if sent.frame[1] < 126 else sent.frame[4:] for sent in EVENTS]
    frames = [compressed(message) for message in messages]
    readings = Readings(decompress=decompressor(DICTIONARY))
    one = Subscription("somebody", EVERYTHING, readings)
    one.receive(b"".join(frames), 0)
    counted = Subscription("somebody", EVERYTHING, readings, checked=False, size=7)

    assert (one.events, one.size) == (len(EVENTS), sum(map(len, frames)))
    assert find_position(counted, b"".join(frames[:9])) == Position(1_008, 7 + len(b"".join(frames[:8])))
    assert counts(one) == {}
    one.receive(b"\x82\x02{}" + b"\x81\x02{}", 0)
    assert counts(one) == {"not an event": 1, "frame": 1}


def lost(events: list[Sent]) -> list[Sent]:
    return events[:30] + events[31:]


def repeated(events: list[Sent]) -> list[Sent]:
    return events[:30] + events[29:]


def swapped(events: list[Sent]) -> list[Sent]:
    return [*events[:30], events[31], events[30], *events[32:]]


@pytest.mark.parametrize("damage", [lost, repeated, swapped])
def test_a_checked_stream_that_is_not_the_truths_is_a_finding(
    damage: Callable[[list[Sent]], list[Sent]],
) -> None:
    one = subscription()
    one.receive(stream_of(damage(EVENTS)), 0)
    check_all(one, TRUTH)
    assert counts(one)


def test_an_event_lost_right_after_the_cursor_is_a_finding() -> None:
    one = subscription(cursor=1_010)
    one.receive(stream_of(EVENTS[11:]), 0)
    check_all(one, TRUTH)
    assert counts(one) == {"lost or repeated": 1}


def test_an_event_that_was_not_asked_for_is_a_finding() -> None:
    one = Subscription("somebody", Wanted(frozenset({POST})), Readings())
    one.receive(EVENTS[0].frame, 0)
    assert counts(one) == {"not wanted": 1}


@pytest.mark.parametrize("payload", [b"{", b"[]", b'"x"', b'{"did":"did:plc:a"}', b"\xff"])
def test_what_is_no_event_is_a_finding(payload: bytes) -> None:
    one = subscription()
    one.receive(text(payload), 0)
    assert counts(one) == {"not an event": 1}


def test_a_ping_is_answered_and_a_close_is_read() -> None:
    one = subscription()
    answer = one.receive(b"\x89\x02hi" + b"\x88\x06\x03\xf0slow", 0)
    assert answer == stream.control(stream.PONG, b"hi") + stream.control(stream.CLOSE, b"\x03\xf0")
    assert one.close == "1008 slow"


def test_a_binary_message_is_a_finding() -> None:
    one = subscription()
    one.receive(b"\x82\x01x", 0)
    assert counts(one) == {"frame": 1}


def test_delays_are_taken_only_while_they_are_timed() -> None:
    one = subscription()
    one.receive(EVENTS[0].frame, 1_500)
    one.readings.timed = True
    one.receive(EVENTS[1].frame, 1_501)
    assert (one.readings.delays.count, one.readings.delays.max_us) == (1, 500)


@pytest.mark.parametrize(
    ("since_us", "first_us", "cursor", "missed"),
    [
        (1, 3_000_000, None, True),  # let in at 0, the event of 2 s missed
        (1, 2_000_000, None, False),  # that of 1 s was on its way while it was let in
        (1, 0, None, True),  # nothing at all
        (8_500_000, 0, None, False),  # nothing yet
        (9_000_000, 3_000_000, 2_000_000, True),
        (9_000_000, 3_000_000, 2_000_001, False),
    ],
)
def test_events_before_the_first_are_missed_when_there_was_time_to_send_them(
    since_us: int, first_us: int, cursor: int | None, missed: bool
) -> None:
    truth = truth_of([event(number * 1_000_000) for number in range(1, 10)])
    one = subscription(since_us=since_us, first_us=first_us, cursor=cursor)
    check_start(one, truth)
    assert counts(one) == ({"nothing received": 1} if missed else {})


@given(st.integers(1, len(stream_of(EVENTS))), st.sampled_from([0, 1, 3]))
def test_a_counted_stream_is_placed_wherever_it_is_cut(cut: int, pings: int) -> None:
    one = subscription(checked=False)
    data = PING + stream_of(EVENTS[:20]) + PING * pings + stream_of(EVENTS[20:])
    rest = data
    while not one.first_us and rest:
        one.receive(rest[:97], 0)
        rest = rest[97:]
    counted, last = rest[:cut], rest[cut:]
    one.size += len(counted)
    seen = find_position(one, last)
    check_bytes(one, seen, TRUTH, pings)
    assert counts(one) == {}
    if last.endswith(EVENTS[-1].frame):
        assert seen is not None
        assert seen.time_us == EVENTS[-1].time_us


@pytest.mark.parametrize("damage", [lost, repeated])
def test_a_counted_stream_that_is_not_the_truths_is_a_finding(
    damage: Callable[[list[Sent]], list[Sent]],
) -> None:
    one, data = subscription(checked=False), stream_of(damage(EVENTS))
    one.receive(data[:500], 0)
    one.size += len(data) - 500 - 200
    check_bytes(one, find_position(one, data[-200 - len(EVENTS[-1].frame) :][-400:]), TRUTH, 0)
    assert counts(one) == {"lost or repeated": 1}


def test_a_counted_stream_that_stalls_is_not_reported_as_lossy() -> None:
    truth = truth_of([event(1), event(2_000_000), event(4_000_000)])
    one = subscription(checked=False)
    one.receive(event(1).frame, 0)
    check_bytes(one, None, truth, 0)
    assert counts(one) == {"stalled": 1}


def test_a_counted_stream_that_has_it_all_and_waits_is_right() -> None:
    truth = truth_of([event(1), event(4_000_000)])
    one = subscription(checked=False)
    one.receive(event(1).frame, 0)
    one.size += len(event(4_000_000).frame)
    check_bytes(one, None, truth, 0)
    assert counts(one) == {}


def test_bytes_that_were_never_sent_are_a_finding_without_a_last_event() -> None:
    one = subscription(checked=False)
    one.receive(stream_of(EVENTS), 0)
    one.size += 1_000
    check_bytes(one, None, TRUTH, 3)
    assert counts(one) == {"lost or repeated": 1}


@pytest.mark.parametrize(
    "data", [b"", b"\x81", b"\x81\x7e\x00", b"no event here \x81\x05{}{}{", b"\x81\x02{}"]
)
def test_without_a_whole_event_no_position_is_found(data: bytes) -> None:
    assert find_position(subscription(checked=False), data) is None


def test_the_position_is_where_the_frame_of_the_event_begins() -> None:
    one = subscription(checked=False)
    one.size = 100
    assert find_position(one, b"\x81tail of another" + EVENTS[5].frame + b"\x81\x7e") == Position(1_005, 116)
