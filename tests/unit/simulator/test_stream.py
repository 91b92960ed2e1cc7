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


def appended(firehose: Stream, count: int) -> list[Item]:
    for _ in range(count):
        firehose.advance()
    items, _ = firehose.take(firehose.first, 10**6)
    return items


def test_numbers_rise_by_one() -> None:
    items = appended(stream(), 100)
    assert [item.seq for item in items] == list(range(1, 101))
    assert [recording.seq_of(item.frame) for item in items] == list(range(1, 101))


def test_the_stream_does_not_depend_on_its_readers() -> None:
    rates = Faults(**dict.fromkeys(faults.STREAM_FAULTS, 0.02))
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


def test_an_item_for_one_subscriber_is_taken_once() -> None:
    firehose = stream()
    firehose.advance()
    firehose.inject("garbage")
    firehose.advance()
    first, end = firehose.take(0, 100)
    second, same_end = firehose.take(0, 100)
    assert [item.effect for item in first] == [Effect.SEND, Effect.SEND, Effect.ONCE]
    assert [item.effect for item in second] == [Effect.SEND, Effect.SEND]
    assert end == same_end == firehose.end == 3


@pytest.mark.parametrize(
    ("fault", "effect"), [("drop", Effect.DROP), ("stall", Effect.STALL), ("error_frame", Effect.ERROR)]
)
def test_a_subscriber_takes_nothing_after_the_end_of_its_connection(fault: str, effect: Effect) -> None:
    firehose = stream()
    firehose.inject(fault)
    firehose.advance()
    firehose.advance()
    items, position = firehose.take(0, 100)
    assert ([item.effect for item in items], position) == ([Effect.SEND, effect], 2)
    rest, _ = firehose.take(firehose.position_after(1), 100)
    assert [item.seq for item in rest] == [2]


def test_a_cursor_leads_to_the_items_after_it() -> None:
    firehose = stream(Faults(repeat=0.1, skip=0.1))
    appended(firehose, 200)
    for cursor in (0, 1, 57, 199, 200):
        items, _ = firehose.take(firehose.position_after(cursor), 10**6)
        assert [item.seq for item in items if item.seq <= cursor] == []
        sent = [item.seq for item in items if item.effect is Effect.SEND]
        assert sent == sorted(set(sent))


def test_the_window_keeps_the_newest() -> None:
    firehose = stream(window=100)
    appended(firehose, 1000)
    assert 100 <= firehose.end - firehose.first <= 125
    assert firehose.oldest_seq > 870
    items, _ = firehose.take(firehose.first, 10**6)
    assert items[-1].seq == 1000


def test_the_sinks_get_everything_in_order() -> None:
    truth: list[bytes] = []
    frames: list[bytes] = []
    ledger: list[bytes] = []
    firehose = stream(truth=truth.append, record=frames.append, ledger=ledger.append)
    returned = [event for _ in range(50) for event in firehose.advance()]
    firehose.inject("skip")
    lost = firehose.advance()
    assert len(truth) == len(returned) + len(lost)
    assert len(frames) == 50
    (line,) = map(orjson.loads, ledger)
    assert (line["fault"], line["seq"], line["level"]) == ("skip", 51, "frame")
    assert [event["index"] for event in line["events"]] == list(range(len(returned), len(truth)))


def test_a_fault_waits_for_a_message_to_which_it_applies() -> None:
    ledger: list[bytes] = []
    firehose = stream(ledger=ledger.append)
    did = firehose.world.accounts[0].did
    firehose.inject("missing_record")
    firehose.append(firehose.world.identify(did))
    assert ledger == []
    firehose.append(firehose.world.create_record(did, "app.test.note", {"text": "hello"}))
    assert orjson.loads(ledger[0])["fault"] == "missing_record"


def test_unknown_faults_are_refused() -> None:
    with pytest.raises(ValueError, match="earthquake is not one of drop, stall"):
        stream().inject("earthquake")
