from __future__ import annotations

from itertools import islice

import pytest
from benches.frames import simulated
from benches.ring import FIRST_SEQ, Ring, accounts
from tests.builders import dag_cbor
from tests.decoding import Message, decode

from jetstream.atproto.tid import tid_us
from jetstream.bench import stream
from jetstream.model.event import SYNC
from jetstream.simulator.records import datetime_of
from jetstream.simulator.world import Population
from jetstream.upstream.envelope import read_envelope
from jetstream.upstream.extract import extract

SMALL = Population(repos=20, records=5)
FRAMES = [frame for frame in islice(simulated(SMALL, 500), 205) if b"factive\xf4" not in frame][:200]
NOW_US = 1_790_000_000_123_456


def written(ring: Ring, first: int, stop: int, now_us: int = NOW_US) -> tuple[list[bytes], int]:
    """Write frames; return them, and how many events are in them."""
    spans, events = ring.write(first, stop, now_us)
    frames, used = stream.frames(data := b"".join(ring.data[start:end] for start, end in spans))
    assert used == len(data)
    return [frame.payload for frame in frames], events


def sent(ring: Ring, first: int, stop: int, now_us: int = NOW_US) -> tuple[list[Message], int]:
    """Write frames, and read them as a server does: with the CIDs of their records checked."""
    frames, events = written(ring, first, stop, now_us)
    return [decode(frame) for frame in frames], events


def test_frames_are_numbered_on_and_on_and_nothing_of_them_is_dropped() -> None:
    ring = Ring(FRAMES, repos=7)
    messages, events = sent(ring, 0, 200)
    again, events_again = sent(ring, 200, 400)
    assert [message.seq for message in messages + again] == list(range(FIRST_SEQ, FIRST_SEQ + 400))
    assert sum(len(message.events) for message in messages) == events == events_again > 150
    assert not any(message.drops for message in messages + again)


def test_frames_say_who_and_when() -> None:
    frames, _ = written(Ring(FRAMES, repos=7), 0, 200)
    commits = [envelope for envelope in map(read_envelope, frames) if envelope.type == "commit"]
    assert {envelope.fields["time"] for envelope in commits} == {datetime_of(NOW_US)}
    events = [event for envelope in commits for event in extract(envelope)[0]]
    assert len(events) > 150
    assert {tid_us(event.rev.decode()) for event in events} == {NOW_US}
    own = [event.did.decode() for event in events if event.did.startswith(b"did:plc:")]
    assert set(own) == set(accounts(7))


@pytest.mark.parametrize("repos", [0, 7])
def test_the_account_of_each_event_is_known_before(repos: int) -> None:
    ring = Ring(FRAMES, repos)
    messages = [message for first in (0, len(ring)) for message in sent(ring, first, first + len(ring))[0]]
    accounts_sent = [event.did for message in messages for event in message.events if event.kind != SYNC]
    assert accounts_sent == list(islice(ring.accounts_of_events(), len(accounts_sent)))


def test_the_same_frame_once_round_later_differs_only_in_what_is_written_over() -> None:
    ring = Ring(FRAMES, repos=200)
    (first,), _ = sent(ring, 0, 1)
    (later,), _ = sent(ring, 200, 201, NOW_US + 5_000_000)
    assert later.seq == FIRST_SEQ + 200
    assert [event._replace(rev=b"") for event in first.events] == [
        event._replace(rev=b"") for event in later.events
    ]
    assert [tid_us(event.rev.decode()) - NOW_US for event in later.events] == [5_000_000] * len(first.events)


def test_frames_around_the_end_of_the_ring_are_two_ranges() -> None:
    ring = Ring(FRAMES, repos=7)
    spans, _ = ring.write(195, 205, NOW_US)
    assert len(spans) == 2
    assert spans[0][1] == len(ring.data)
    assert spans[1][0] == 0


def test_without_accounts_frames_keep_what_is_signed() -> None:
    frames, _ = written(Ring(FRAMES, repos=0), 0, 200)
    kept = [read_envelope(frame).fields for frame in FRAMES]
    for before, after in zip(kept, (read_envelope(frame).fields for frame in frames), strict=True):
        changed = {name for name in before if before[name] != after[name]}
        assert changed <= {"seq", "time"}


def test_accounts_are_the_same_every_time_and_each_but_once() -> None:
    assert accounts(50) == accounts(50)
    assert len(set(accounts(50))) == 50


def test_no_account_goes() -> None:
    message = {"did": accounts(1)[0], "seq": 1, "time": "2024-09-05T06:11:04.870Z", "active": True}
    stays, goes = ({**message, "active": active} for active in (True, False))
    header = dag_cbor({"op": 1, "t": "#account"})
    ring = Ring([header + dag_cbor(stays), header + dag_cbor(goes)], repos=1)
    messages, events = sent(ring, 0, 1)
    assert (len(ring), events, messages[0].type) == (1, 1, "account")


@pytest.mark.parametrize("time", ["2024-09-05T06:11:04Z", ""])
def test_a_frame_without_a_time_of_the_usual_length_is_refused(time: str) -> None:
    frame = dag_cbor({"op": 1, "t": "#identity"}) + dag_cbor({"did": accounts(1)[0], "seq": 1, "time": time})
    with pytest.raises(ValueError, match="no time of 24 characters"):
        Ring([frame], repos=1)
