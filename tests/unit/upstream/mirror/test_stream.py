"""Which messages of a stream are new, and that positions only rise."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import DID, LIKE, REV

from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.renderers.v2 import info
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, Event, Key
from jetstream.upstream.mirror.message import MirrorMessage
from jetstream.upstream.mirror.recent import Recent
from jetstream.upstream.mirror.stream import LOOKUPS_MAX, ForeignStream, OwnStream, Taken, read_message
from jetstream.upstreams import AHEAD_MAX_US

NOW = 1_725_516_666_000_000
CID = b"bafyreihdlrrfxc4l5few7lso3u36zf655omeuso3y3dnersr5mm3r7mbyu"
DELETED = Event(ACCOUNT, DID.encode(), b"", b"", b"", b"", b'{"active":false,"did":"%b"}' % DID.encode())


def event(number: int) -> Event:
    return Event(CREATE, DID.encode(), LIKE.encode(), b"%d" % number, REV.encode(), CID, b'{"n":%d}' % number)


def messages(*positions: int, wire: str = "v2", what: Event | None = None) -> list[bytes]:
    """Return the messages of events, each of which is told by its position."""
    renderer = RENDERERS[wire]
    return [renderer.render(Batch.of([what or event(at)], [at]), range(1))[0] for at in positions]


def own(tip: int = 0, newest: Event | None = None) -> OwnStream:
    return OwnStream(tip, newest, lambda: 0.0)


# One of ours


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(0, 20), st.integers(1, 10))
def test_what_is_taken_rises_above_the_tip_and_nothing_else_is_lost(
    positions: list[int], tip: int, size: int
) -> None:
    """However the messages are cut into runs."""
    expected, last = [], tip
    for position in positions:
        if position > last:
            expected.append(position)
            last = position
    stream, taken, drops = own(tip), [], 0
    for start in range(0, len(positions), size):
        run = stream.read(messages(*positions[start : start + size]), NOW)
        assert run.frames == len(positions[start : start + size])
        assert run.events == [event(at) for at in run.times]
        taken += run.times
        drops += sum(run.drops.values())
    assert taken == expected
    assert len(taken) + drops == len(positions)
    assert stream.last == last


def test_the_event_at_the_tip_comes_again_and_is_the_same() -> None:
    taken = own(5, event(5)).read(messages(5, 6), NOW)
    assert (taken.times, dict(taken.drops), taken.is_other) == ([6], {"repeat": 1}, False)


def test_another_event_at_the_tip_is_of_another_stream_and_nothing_is_taken() -> None:
    taken = own(5, event(4)).read(messages(5, 6), NOW)
    assert (taken.times, taken.is_other, taken.frames) == ([], True, 1)


def test_only_the_first_event_is_compared() -> None:
    taken = own(5, event(4)).read(messages(6, 5, 7), NOW)
    assert (taken.times, dict(taken.drops), taken.is_other) == ([6, 7], {"position": 1}, False)


@pytest.mark.parametrize("newest", [None, event(5)])
def test_an_event_at_the_tip_that_was_erased_is_not_missed(newest: Event | None) -> None:
    taken = own(5, newest).read(messages(8), NOW)
    assert (taken.times, taken.is_other) == ([8], False)


def test_a_position_far_ahead_of_the_clock_is_dropped_and_those_behind_it_are_not() -> None:
    highest = NOW + AHEAD_MAX_US
    taken = own(5).read(messages(6, highest + 1, 7, highest), NOW)
    assert (taken.times, dict(taken.drops)) == ([6, 7, highest], {"position": 1})


def test_what_is_no_event_is_counted_and_passed_over() -> None:
    heartbeat, broken = info("Heartbeat", "a"), b"{"
    taken = own().read([*messages(1), heartbeat, broken, *messages(2)], NOW)
    assert taken.times == [1, 2]
    assert [notice.name for notice in taken.notices] == ["Heartbeat"]
    assert dict(taken.drops) == {"message_form": 1}
    assert dict(taken.types) == {"commit": 2, "info": 1, "unknown": 1}


def test_reading_stops_when_its_time_is_over_and_goes_on_with_the_next() -> None:
    stream = OwnStream(0, None, iter([1.0, 3.0, 4.0]).__next__)
    all_ = messages(1, 2, 3)
    first = stream.read(all_, NOW, until=2.0)
    assert (first.times, first.frames) == ([1, 2], 2)
    assert stream.read(all_[first.frames :], NOW).times == [3]


def test_a_message_that_is_too_long_is_dropped_unread_and_the_next_one_is_not() -> None:
    long = b'{"a":[' + b"[]," * 500 + b"1]}"
    run = [long, *messages(1), b'{"$type":"error","error":"a","message":"' + b"m" * 1_000 + b'"}']
    ours = OwnStream(0, None, lambda: 0.0, 1_000).read(run, NOW)
    other = ForeignStream(None, Recent(), lambda: 0.0, 1_000).read(run)
    for taken in ours, other:
        assert (dict(taken.drops), len(taken.events), taken.frames) == ({"frame_size": 2}, 1, 3)
        assert taken.notices == []


@pytest.mark.parametrize("error", [TypeError("a"), RecursionError(), KeyError("b" * 500), MemoryError()])
def test_a_parser_that_fails_costs_its_message_and_nothing_else(error: Exception) -> None:
    def parser(message: bytes) -> MirrorMessage:
        raise error

    taken = Taken()
    assert read_message(b"{}", parser, 100, taken) is None
    assert (dict(taken.drops), taken.frames, dict(taken.types)) == ({"unforeseen": 1}, 1, {"unknown": 1})
    assert taken.problem.startswith(f"{type(error).__name__}: {error}"[:20])
    assert len(taken.problem) <= 200


# Any other


class Log:
    """What is stored of a stream, by content; and a stream that is read against it."""

    def __init__(self, cursor: int | None = None, *stored: Event) -> None:
        self.keys: set[Key] = {each.key for each in stored}
        self.stored: list[Event] = []
        self.stream = ForeignStream(cursor, Recent(), lambda: 0.0)

    def read(self, run: list[bytes]) -> Taken:
        taken = self.stream.read(run)
        if taken.lookups:
            self.stream.resolve(taken, {key for key in taken.lookups if key in self.keys})
        self.stored += taken.events
        self.keys |= {each.key for each in taken.events}
        return taken

    def read_all(self, run: list[bytes]) -> None:
        while run:
            run = run[self.read(run).frames :]


@pytest.mark.parametrize("wire", ["v1", "v2"])
def test_events_of_other_servers_are_taken_with_their_number_as_cursor(wire: str) -> None:
    log = Log()
    taken = log.read(messages(3, 5, wire=wire))
    assert (log.stored, taken.newest, log.stream.cursor, log.stream.began) == ([event(3), event(5)], 5, 5, 3)


def test_what_comes_again_is_known_by_its_content() -> None:
    log = Log(7, event(5), event(7))
    taken = log.read(messages(5, 6, 7, 8))
    assert (log.stored, dict(taken.drops), log.stream.cursor) == ([event(6), event(8)], {"repeat": 2}, 8)


def test_other_numbers_for_the_same_events_make_no_difference() -> None:
    log = Log(100, *map(event, range(1, 40)))
    numbered = enumerate(messages(37, 38, 39, 40, 41, wire="v1"))
    moved = [json.dumps(json.loads(each) | {"time_us": 90 + n}).encode() for n, each in numbered]
    log.read_all(moved)
    assert log.stored == [event(40), event(41)]
    assert log.stream.cursor == 100


def test_numbers_that_begin_again_are_followed_and_nothing_is_lost_or_twice() -> None:
    log = Log(10_000, event(10_000))
    log.read_all(messages(*range(1, 200)))
    assert log.stored == [event(number) for number in range(1, 200)]
    assert log.stream.cursor == 199
    log.read_all(messages(*range(150, 210)))
    assert log.stored == [event(number) for number in range(1, 210)]


def test_numbers_that_were_known_once_do_not_begin_again() -> None:
    log = Log(1_000, event(900))
    log.read_all(messages(900, *range(901, 950)))
    assert log.stream.cursor == 1_000
    assert len(log.stored) == 49


def test_what_was_stored_last_is_known_whatever_its_number_is() -> None:
    """A server that was killed sends again what it had not saved, with later numbers."""
    log = Log()
    log.read(messages(1, 2, 3, wire="v1"))
    renumbered = [
        json.dumps(json.loads(each) | {"time_us": 10 + n}).encode()
        for n, each in enumerate(messages(2, 3, 4, wire="v1"))
    ]
    taken = log.read(renumbered)
    assert ([each.rkey for each in taken.events], dict(taken.drops)) == ([b"4"], {"repeat": 2})
    assert log.stream.cursor == 12


def test_the_oldest_events_are_forgotten_first() -> None:
    recent = Recent(2)
    for number in 1, 2, 3:
        recent.add(event(number).key)
    assert [event(number).key in recent for number in (1, 2, 3)] == [False, True, True]


def test_so_many_are_asked_for_at_once() -> None:
    log = Log(1_000, event(900))
    assert log.read(messages(*range(900, 999))).frames == LOOKUPS_MAX


def test_the_deletion_of_an_account_whose_records_were_erased_is_taken_again() -> None:
    """The log does not have the records any more, so they seem to be new."""
    log = Log(9, DELETED)
    log.read(messages(5) + messages(6, what=DELETED))
    assert log.stored == [event(5), DELETED]
    log = Log(9, DELETED, event(5))
    log.read(messages(5) + messages(6, what=DELETED))
    assert log.stored == []


def test_fields_that_were_left_out_are_counted_and_their_event_is_taken() -> None:
    log = Log()
    long = event(1)._replace(
        kind=ACCOUNT, body=DELETED.body.replace(b"{", b'{"status":"' + b"a" * 65 + b'",')
    )
    [message] = messages(1, wire="v1", what=long)
    taken = log.read([message])
    assert (dict(taken.drops), log.stored) == ({"field_size": 1}, [DELETED])


def test_notices_and_bad_messages_of_other_servers_are_counted() -> None:
    log = Log()
    taken = log.read([info("a", "b"), b'{"$type":"error","error":"c"}', b"1", *messages(1)])
    assert [(each.type, each.name) for each in taken.notices] == [("info", "a"), ("error", "c")]
    assert (dict(taken.drops), log.stored) == ({"message_form": 1}, [event(1)])
