from __future__ import annotations

import orjson
import pytest

from jetstream.simulator import faults, recording
from jetstream.simulator.faults import Effect, Faults
from jetstream.simulator.stream import Item, Stream
from jetstream.simulator.world import Population, SteadyClock, World


def stream(rates: Faults | None = None, seed: int = 1, *, window: int = 1000, **sinks: object) -> Stream:
    world = World(Population(repos=10, records=5), seed, SteadyClock(1_767_225_600_000_000, 2500))
    return Stream(world, rates, seed, window=window, **sinks)  # type: ignore[arg-type]


def said(script: Stream, count: int) -> list[Item]:
    for _ in range(count):
        script.advance()
    items, _ = script.take(script.first, 10**6)
    return items


def test_numbers_rise_by_one() -> None:
    items = said(stream(), 100)
    assert [item.seq for item in items] == list(range(1, 101))
    assert [recording.number_of(item.frame) for item in items] == list(range(1, 101))


def test_the_script_does_not_depend_on_who_reads_it() -> None:
    rates = Faults(**dict.fromkeys(faults.STREAMED, 0.02))
    alone, watched = stream(rates), stream(rates)
    seen: list[Item] = []
    position = 0
    for number in range(300):
        alone.advance()
        watched.advance()
        if number % 7 == 0:
            some, position = watched.take(position, 3)
            seen += some
    while position < watched.end:
        some, position = watched.take(position, 50)
        seen += some
    unread: list[Item] = []
    position = 0
    while position < alone.end:
        some, position = alone.take(position, 1000)
        unread += some
    assert seen == unread


def test_what_is_for_one_reader_is_taken_once() -> None:
    script = stream()
    script.advance()
    script.inject("garbage")
    script.advance()
    first, end = script.take(0, 100)
    second, same_end = script.take(0, 100)
    assert [item.effect for item in first] == [Effect.SEND, Effect.SEND, Effect.ONCE]
    assert [item.effect for item in second] == [Effect.SEND, Effect.SEND]
    assert end == same_end == script.end == 3


@pytest.mark.parametrize(
    ("fault", "effect"), [("drop", Effect.DROP), ("stall", Effect.STALL), ("error_frame", Effect.ERROR)]
)
def test_a_reader_takes_nothing_beyond_the_end_of_its_connection(fault: str, effect: Effect) -> None:
    script = stream()
    script.inject(fault)
    script.advance()
    script.advance()
    items, position = script.take(0, 100)
    assert ([item.effect for item in items], position) == ([Effect.SEND, effect], 2)
    rest, _ = script.take(script.position_after(1), 100)
    assert [item.seq for item in rest] == [2]


def test_a_cursor_leads_to_what_was_said_after_it() -> None:
    script = stream(Faults(repeat=0.1, skip=0.1))
    said(script, 200)
    for cursor in (0, 1, 57, 199, 200):
        items, _ = script.take(script.position_after(cursor), 10**6)
        assert [item.seq for item in items if item.seq <= cursor] == []
        sent = [item.seq for item in items if item.effect is Effect.SEND]
        assert sent == sorted(set(sent))


def test_the_window_keeps_the_newest() -> None:
    script = stream(window=100)
    said(script, 1000)
    assert 100 <= script.end - script.first <= 125
    assert script.oldest_seq > 870
    items, _ = script.take(script.first, 10**6)
    assert items[-1].seq == 1000


def test_the_sinks_get_everything_in_order() -> None:
    truth: list[bytes] = []
    frames: list[bytes] = []
    ledger: list[bytes] = []
    script = stream(truth=truth.append, record=frames.append, ledger=ledger.append)
    returned = [event for _ in range(50) for event in script.advance()]
    script.inject("skip")
    lost = script.advance()
    assert len(truth) == len(returned) + len(lost)
    assert len(frames) == 50
    (line,) = map(orjson.loads, ledger)
    assert (line["fault"], line["seq"], line["level"]) == ("skip", 51, "frame")
    assert [event["index"] for event in line["events"]] == list(range(len(returned), len(truth)))


def test_a_fault_waits_for_a_message_that_it_suits() -> None:
    ledger: list[bytes] = []
    script = stream(ledger=ledger.append)
    did = script.world.present[0].did
    script.inject("missing_record")
    script.say(script.world.identify(did))
    assert ledger == []
    script.say(script.world.create_record(did, "app.test.note", {"text": "hello"}))
    assert orjson.loads(ledger[0])["fault"] == "missing_record"


def test_unknown_faults_are_refused() -> None:
    with pytest.raises(ValueError, match="earthquake is not one of drop, stall"):
        stream().inject("earthquake")
