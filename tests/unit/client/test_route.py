from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.client.message import Mark, Message
from jetstream.client.route import Recent, Route, key_of

REWIND = 100


def event(number: int, time_us: int) -> Message:
    commit = {"rev": f"r{number}", "collection": "a.b.c", "rkey": "k"}
    return Message.parse(json.dumps({"did": "did:web:x", "time_us": time_us, "commit": commit}).encode())


def test_one_server_is_resumed_after_its_last_event() -> None:
    route = Route(1, None, REWIND)
    assert route.start() is None
    assert route.begin(live=50) == 50
    assert route.start() == 50
    assert route.begin(live=60) is None
    assert route.received(event(1, 60))
    assert route.received(event(1, 70))  # nothing is compared
    route.lost()
    assert (route.server, route.start()) == (0, 71)


def test_the_same_server_is_tried_again_after_a_connection_that_brought_something() -> None:
    route = Route(3, 50, REWIND)
    servers = []
    for heard in (True, True, False, False, True, False):
        route.start()
        servers.append(route.server)
        if heard:
            route.received(Mark(60, live=False))
        route.lost()
    assert servers == [0, 0, 0, 1, 2, 2]
    assert route.server == 0


def test_another_server_starts_below_the_cursor_until_it_sends_something() -> None:
    route = Route(2, 1000, REWIND)
    route.start()
    route.received(event(1, 1099))
    route.skip()
    assert route.start() == 1000
    route.lost()
    assert (route.server, route.start()) == (0, 1100)  # back to the first, where nothing has changed
    route.skip()
    route.start()
    route.received(event(2, 1050))
    assert route.start() == 1051


def test_a_given_cursor_is_right_wherever_it_is_used_first() -> None:
    route = Route(2, 1000, REWIND)
    assert route.start() == 1000
    route.lost()
    assert route.start() == 1000


def test_a_cursor_of_an_unknown_server_is_rewound() -> None:
    assert Route(2, 1000, REWIND, elsewhere=True).start() == 900
    assert Route(2, 10, REWIND, elsewhere=True).start() == 0
    assert Route(1, 1000, REWIND, elsewhere=True).start() == 1000


def test_a_server_whose_clock_is_far_behind_is_resumed_where_it_was() -> None:
    route = Route(3, 1000, REWIND)
    route.start()
    route.received(event(1, 5000))
    route.skip()
    assert route.start() == 4901
    assert route.received(event(2, 2000))  # its newest event: it was asked for its future
    assert route.start() == 2001
    route.skip()
    assert route.start() == 1901


def times(first: int, gaps: list[int]) -> list[int]:
    found = [first]
    for gap in gaps:
        found.append(found[-1] + gap)
    return found


@st.composite
def servers(draw: st.DrawFn) -> list[list[int]]:
    """Three servers' rising times of the same events; at most the rewind apart."""
    base = times(10_000, draw(st.lists(st.integers(1, 60), min_size=5, max_size=60)))
    rows = []
    for _ in range(3):
        shifts = [draw(st.integers(0, REWIND)) for _ in base]
        row = [time + shift for time, shift in zip(base, shifts, strict=True)]
        for place, (before, after) in enumerate(pairwise(row)):
            row[place + 1] = max(before + 1, after)
        rows.append([min(time, start + REWIND) for time, start in zip(row, base, strict=True)])
    return [row if all(a < b for a, b in pairwise(row)) else base for row in rows]


@given(rows=servers(), cuts=st.lists(st.integers(0, 12), max_size=12))
def test_events_come_once_whichever_servers_are_lost_if_their_times_are_no_more_apart_than_the_rewind(
    rows: list[list[int]], cuts: list[int]
) -> None:
    route = Route(len(rows), 0, REWIND)
    came: list[int] = []
    for cut in [*cuts, 1000, 0, 1000]:
        start = route.start()
        row = rows[route.server]
        sent = [number for number, time_us in enumerate(row) if time_us >= (start or 0)][:cut]
        came += [number for number in sent if route.received(event(number, row[number]))]
        if cut % 2:
            route.skip()
        else:
            route.lost()
    assert sorted(came) == list(range(len(rows[0])))
    assert len(came) == len(set(came))


def test_what_is_remembered_is_bounded_in_time_and_in_number() -> None:
    recent = Recent(100, most=10)
    for number in range(1000):
        recent.add(b"%d" % number, number)
    assert len(recent) == 10
    assert b"999" in recent
    assert b"989" not in recent
    recent.add(b"later", 5000)
    assert len(recent) == 1
    recent.add(b"later", 6000)
    assert len(recent) == 1


def message(**fields: object) -> Message:
    return Message.parse(json.dumps({"did": "did:web:x", "time_us": 1, **fields}).encode())


def test_a_key_is_what_servers_agree_on() -> None:
    identity = {"did": "did:web:x", "handle": "x", "seq": 5, "time": "t"}
    assert key_of(message(type="id", identity=identity)) == key_of(
        message(kind="identity", time_us=9, identity=identity | {"seq": 6})
    )
    assert key_of(message(identity=identity)) != key_of(message(identity=identity | {"time": "u"}))
    commit = {"rev": "r", "collection": "c", "rkey": "k", "record": {"x": 1}}
    assert key_of(message(kind="commit", commit=commit)) == key_of(
        message(type="com", commit=commit | {"cid": "c"})
    )
    assert key_of(message(commit=commit)) != key_of(message(commit=commit | {"rkey": "l"}))
    assert key_of(message(x=1)) == key_of(message(x=1, time_us=9))


@pytest.mark.parametrize("odd", [{"commit": []}, {"identity": "x"}, {"account": [1]}, {"did": {"a": 1}}, {}])
def test_anything_has_a_key(odd: dict[str, object]) -> None:
    assert key_of(message(**odd)) == key_of(message(**odd))
