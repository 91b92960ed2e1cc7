"""Frames of upstream, damaged as bytes and as values: nothing raises, and a seq that can be read is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from typing import Any

import cbor2
import pytest
from hypothesis import strategies as st
from tests.builders import LIKE, Op, account, commit, create, delete, frame, identity, like, sync
from tests.decoding import decode
from tests.fixtures import ROOT, captured_frames
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutations import INTEGERS, broken_values, cbor_values, cheap_values, damaged, plain

from jetstream.delivery.renderers import RENDERERS
from jetstream.model.batch import Batch
from jetstream.model.event import Event
from jetstream.upstream.drops import DROP_REASONS
from jetstream.upstream.envelope import MESSAGE_TYPES
from jetstream.upstream.pipeline import Pipeline
from jetstream.upstream.seq_tracker import SeqTracker

# A failing frame may be long, and is shown whole.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

MESSAGE_BYTES_MAX = 1_000_000
# A commit of usual size must not cost more; a bound for a machine that is slow, not a goal.
DECODE_CPU_S = 0.1
TRIES = 3  # the garbage collector may come in between
SEQ = 28_000_000_000


@cache
def whole_frames() -> list[bytes]:
    """Return good frames: made ones, and captured ones where they are kept."""
    ops = [like(1), delete(f"{LIKE}/2"), Op("update", f"{LIKE}/3", {"$type": LIKE, "text": "<&>"})]
    made = [commit(SEQ, ops), commit(SEQ), identity(SEQ, handle="a.example"), account(SEQ, status="deleted")]
    made.append(frame("#info", {"name": "OutdatedCursor"}))
    return made + (captured_frames() if (ROOT / "firehose" / "frames.bin.zst").exists() else [])


@cache
def whole_bodies() -> list[tuple[str, dict[str, Any]]]:
    """Return the types and bodies of the good frames that have a seq."""
    found = []
    for data in whole_frames():
        file = BytesIO(data)
        header, body = cbor2.load(file), plain(cbor2.load(file))
        if "seq" in body:
            found.append((header["t"], body))
    return found


def check_events(events: Sequence[Event]) -> None:
    """Every event is JSON in each spelling, and no message is longer than clients take."""
    batch = Batch.of(events, range(1, len(events) + 1))
    for renderer in RENDERERS.values():
        for message in filter(None, renderer.render(batch, range(len(batch)))):
            assert len(message) <= MESSAGE_BYTES_MAX
            json.loads(message)


def decode_within_bound(data: bytes) -> Any:
    costs = []
    for _ in range(TRIES):
        began = time.thread_time()
        message = decode(data)
        costs.append(time.thread_time() - began)
        if costs[-1] <= DECODE_CPU_S:
            break
    assert min(costs) <= DECODE_CPU_S, f"{len(data)} bytes cost {min(costs):.3f} s"
    assert message.type in MESSAGE_TYPES
    assert set(message.drops) <= set(DROP_REASONS)
    check_events(message.events)
    return message


def test_damaged_bytes_are_a_message(fuzz: Fuzz) -> None:
    def check(data: bytes) -> None:
        decode_within_bound(data)

    fuzz(check, damaged(st.sampled_from(whole_frames())), 1_000)


@st.composite
def changed_bodies(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Draw a body with some values, at any depth, changed, left out or added; its seq is a good one."""
    kind, body = draw(st.sampled_from(whole_bodies()))
    body = copied(body)
    # One that costs much, and more that do not: a seq between two that do is not looked for.
    for values in [cbor_values()] + [cheap_values()] * draw(st.integers(0, 2)):
        change(draw, body, values)
    body["seq"] = draw(st.integers(1, (1 << 63) - 1))
    return kind, body


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def change(draw: st.DrawFn, inside: Any, values: st.SearchStrategy[Any]) -> None:
    """Change one value of a map or list, or of what is in it."""
    keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
    if not keys:
        return
    key = draw(st.sampled_from(keys))
    if isinstance(inside[key], dict | list) and draw(st.booleans()):
        change(draw, inside[key], values)
    elif draw(st.integers(0, 4)) == 0:
        del inside[key]
    else:
        inside[key] = draw(values)


def check_seq_is_kept(case: tuple[str, dict[str, Any]]) -> None:
    kind, body = case
    assert decode_within_bound(frame(kind, body)).seq == body["seq"]


def test_a_seq_survives_what_is_around_it(fuzz: Fuzz) -> None:
    """One bad value drops the smallest thing: the cursor moves on, whatever else the frame holds."""
    fuzz(check_seq_is_kept, changed_bodies(), 200)


def records() -> st.SearchStrategy[bytes]:
    """Draw commits whose records are anything, under their right CIDs."""
    ops = st.tuples(
        st.integers(0, 9),
        cbor_values() | broken_values() | st.dictionaries(st.text(max_size=5), cbor_values()),
    )
    made = ops.map(lambda op: create(f"{LIKE}/{op[0]}", op[1]))
    return st.lists(made, min_size=1, max_size=4).map(lambda some: commit(SEQ, some))


def test_any_record_is_an_event_or_dropped(fuzz: Fuzz) -> None:
    def check(data: bytes) -> None:
        message = decode_within_bound(data)
        assert message.seq == SEQ

    fuzz(check, records(), 300)


def streams() -> st.SearchStrategy[list[tuple[bool, bytes]]]:
    """Draw frames with numbers that rise, repeat, jump and restart; True is a new connection before one."""
    near = st.integers(-3, 5).map(lambda step: SEQ + step)
    numbers = st.one_of(near, st.sampled_from(INTEGERS), st.integers(1, 40), near.map(lambda n: n + 300_000))
    good = numbers.flatmap(lambda n: st.sampled_from([commit(n), identity(n), account(n), sync(n)]))
    return st.lists(st.tuples(st.booleans(), good | damaged(good)), max_size=40)


def test_any_numbers_are_taken_without_an_error(fuzz: Fuzz) -> None:
    def check(stream: list[tuple[bool, bytes]]) -> None:
        pipeline = Pipeline(SeqTracker(None), time.monotonic)
        for connects, data in stream:
            if connects:
                pipeline.tracker.connected()
            batch = pipeline.read([data])
            check_events(batch.events)
            assert set(batch.drops) <= set(DROP_REASONS)

    fuzz(check, streams(), 150)
