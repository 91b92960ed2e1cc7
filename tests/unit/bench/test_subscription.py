from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.bench.streams import POST, Sent, event, stream_of, text, truth_of

from jetstream.bench import stream
from jetstream.bench.mix import EVERYTHING, Wanted
from jetstream.bench.subscription import (
    Readings,
    Sight,
    Subscription,
    close_words,
    judge_begin,
    judge_checked,
    judge_counted,
    sight,
    tid_us,
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
        one.take(data[:size], 0)
        data = data[size:]
    one.take(data, 0)
    judge_checked(one, TRUTH)
    assert (one.events, one.size) == (len(EVENTS), len(stream_of(EVENTS)))
    assert counts(one) == {}


def lost(events: list[Sent]) -> list[Sent]:
    return events[:30] + events[31:]


def repeated(events: list[Sent]) -> list[Sent]:
    return events[:30] + events[29:]


def swapped(events: list[Sent]) -> list[Sent]:
    return [*events[:30], events[31], events[30], *events[32:]]


@pytest.mark.parametrize("spoil", [lost, repeated, swapped])
def test_a_checked_stream_that_is_not_the_truths_is_found_out(
    spoil: Callable[[list[Sent]], list[Sent]],
) -> None:
    one = subscription()
    one.take(stream_of(spoil(EVENTS)), 0)
    judge_checked(one, TRUTH)
    assert counts(one)


def test_an_event_lost_right_after_the_cursor_is_found_out() -> None:
    one = subscription(cursor=1_010)
    one.take(stream_of(EVENTS[11:]), 0)
    judge_checked(one, TRUTH)
    assert counts(one) == {"lost or repeated": 1}


def test_an_event_that_was_not_asked_for_is_found_out() -> None:
    one = Subscription("somebody", Wanted(frozenset({POST})), Readings())
    one.take(EVENTS[0].frame, 0)
    assert counts(one) == {"not wanted": 1}


@pytest.mark.parametrize("payload", [b"{", b"[]", b'"x"', b'{"did":"did:plc:a"}', b"\xff"])
def test_what_is_no_event_is_found_out(payload: bytes) -> None:
    one = subscription()
    one.take(text(payload), 0)
    assert counts(one) == {"no event": 1}


def test_a_ping_is_answered_and_a_close_is_read() -> None:
    one = subscription()
    answer = one.take(b"\x89\x02hi" + b"\x88\x06\x03\xf0slow"[:8], 0)
    assert stream.unmask(answer) == (stream.PONG, b"hi")
    assert stream.unmask(answer[8:]) == (stream.CLOSE, b"\x03\xf0")
    assert one.close == "1008 slow"


def test_a_binary_message_is_found_out() -> None:
    one = subscription()
    one.take(b"\x82\x01x", 0)
    assert counts(one) == {"frame": 1}


def test_delays_are_taken_only_while_they_are_timed() -> None:
    one = subscription()
    one.take(EVENTS[0].frame, 1_500)
    one.readings.timed = True
    one.take(EVENTS[1].frame, 1_501)
    assert (one.readings.delays.count, one.readings.delays.max_us) == (1, 500)
    assert one.readings.relay_delays.count == 0


def test_the_time_in_a_rev_gives_the_delay_since_the_relay() -> None:
    sent_us = tid_us("3l3f6nzhvkl2g")
    one = Subscription("somebody", EVERYTHING, Readings(fed=True, timed=True))
    one.take(EVENTS[0].frame, sent_us + 7_000)
    assert one.readings.relay_delays.max_us == 7_000


def test_a_tid_is_read_as_the_moment_it_names() -> None:
    # "3jzfcijpj2z2a" is the TID page's example, of 2023.
    assert tid_us("2222222222222") == 0
    assert tid_us("2222222222322") == 1
    assert 1_687_000_000_000_000 < tid_us("3jzfcijpj2z2a") < 1_689_000_000_000_000


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
    judge_begin(one, truth)
    assert counts(one) == ({"nothing came": 1} if missed else {})


@given(st.integers(1, len(stream_of(EVENTS))), st.sampled_from([0, 1, 3]))
def test_a_counted_stream_is_placed_wherever_it_is_cut(cut: int, pings: int) -> None:
    one = subscription(checked=False)
    data = PING + stream_of(EVENTS[:20]) + PING * pings + stream_of(EVENTS[20:])
    rest = data
    while not one.first_us and rest:
        one.take(rest[:97], 0)
        rest = rest[97:]
    counted, last = rest[:cut], rest[cut:]
    one.size += len(counted)
    seen = sight(one, last)
    judge_counted(one, seen, TRUTH, pings)
    assert counts(one) == {}
    if last.endswith(EVENTS[-1].frame):
        assert seen is not None
        assert seen.time_us == EVENTS[-1].time_us


@pytest.mark.parametrize("spoil", [lost, repeated])
def test_a_counted_stream_that_is_not_the_truths_is_found_out(
    spoil: Callable[[list[Sent]], list[Sent]],
) -> None:
    one, data = subscription(checked=False), stream_of(spoil(EVENTS))
    one.take(data[:500], 0)
    one.size += len(data) - 500 - 200
    judge_counted(one, sight(one, data[-200 - len(EVENTS[-1].frame) :][-400:]), TRUTH, 0)
    assert counts(one) == {"lost or repeated": 1}


def test_a_counted_stream_that_stands_still_is_not_called_lossy() -> None:
    truth = truth_of([event(1), event(2_000_000), event(4_000_000)])
    one = subscription(checked=False)
    one.take(event(1).frame, 0)
    judge_counted(one, None, truth, 0)
    assert counts(one) == {"standing still": 1}


def test_a_counted_stream_that_has_it_all_and_waits_is_right() -> None:
    truth = truth_of([event(1), event(4_000_000)])
    one = subscription(checked=False)
    one.take(event(1).frame, 0)
    one.size += len(event(4_000_000).frame)
    judge_counted(one, None, truth, 0)
    assert counts(one) == {}


def test_bytes_that_were_never_sent_are_found_out_without_a_last_event() -> None:
    one = subscription(checked=False)
    one.take(stream_of(EVENTS), 0)
    one.size += 1_000
    judge_counted(one, None, TRUTH, 3)
    assert counts(one) == {"lost or repeated": 1}


@pytest.mark.parametrize(
    "data", [b"", b"\x81", b"\x81\x7e\x00", b"no event here \x81\x05{}{}{", b"\x81\x02{}"]
)
def test_without_a_whole_event_nothing_is_sighted(data: bytes) -> None:
    assert sight(subscription(checked=False), data) is None


def test_an_event_is_sighted_where_its_frame_begins() -> None:
    one = subscription(checked=False)
    one.size = 100
    assert sight(one, b"\x81tail of another" + EVENTS[5].frame + b"\x81\x7e") == Sight(1_005, 116)


@pytest.mark.parametrize(
    ("payload", "words"), [(b"\x03\xe9bye", "1001 bye"), (b"\x03\xe8", "1000"), (b"", "1005")]
)
def test_a_close_is_told_by_its_code_and_reason(payload: bytes, words: str) -> None:
    assert close_words(payload) == words
