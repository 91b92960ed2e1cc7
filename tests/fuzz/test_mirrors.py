"""Messages of other Jetstreams, damaged as bytes and as values: events within the bounds, or dropped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import strategies as st
from tests.builders import DID, LIKE, Op, account, commit, create, delete, identity, like, sync
from tests.decoding import decode
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutations import INTEGERS, damaged
from tests.fuzz.test_frames import change, check_events, copied

from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.renderers.v2 import info
from jetstream.model.batch import Batch
from jetstream.model.event import Event
from jetstream.upstream.drops import DROP_REASONS
from jetstream.upstream.mirror.foreign import is_error, parse_foreign
from jetstream.upstream.mirror.message import MirrorMessage, Notice, parse, parse_notice
from jetstream.upstream.mirror.recent import Recent
from jetstream.upstream.mirror.stream import ForeignStream, OwnStream, Taken, read_message

# A failing message may be long, and is shown whole.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

AT = 1_725_516_666_000_000
NOTICE_CHARS_MAX = 200
BYTES_MAX = 1_100_000
READ_CPU_S = 0.1  # a bound for a machine that is slow, not a goal
TRIES = 3  # the garbage collector may come in between


@cache
def events() -> list[Event]:
    """Return good events of all kinds."""
    record = {"$type": LIKE, "text": '<&>\u2028","rev":"x"', "n": [1, {"a": None, "b": -(2**64)}], "f": 1e20}
    ops = [like(1), delete(f"{LIKE}/2"), Op("update", f"{LIKE}/3", record), create(f"{LIKE}/4", {})]
    frames = [commit(1, ops), identity(2, handle="a.example"), account(3, status="deleted"), sync(4)]
    return [event for frame in frames for event in decode(frame).events]


@cache
def messages(*wires: str) -> list[bytes]:
    """Return the messages of the good events, and what servers say of themselves."""
    batch = Batch.of(events(), range(AT, AT + len(events())))
    rendered = [RENDERERS[wire].render(batch, range(len(batch))) for wire in wires]
    error = b'{"$type":"error","error":"ConsumerTooSlow","message":"too slow"}'
    return [each for some in rendered for each in some if each] + [info("Heartbeat", "a"), error]


def read_of_any(message: bytes) -> MirrorMessage | Notice:
    return (parse_notice if is_error(message) else parse_foreign)(message)


def read(message: bytes, parser: Callable[[bytes], MirrorMessage | Notice]) -> Taken:
    """Read a message within the bound, check what it came to, and return that."""
    costs = []
    for _ in range(TRIES):
        began = time.thread_time()
        taken = Taken()
        found = read_message(message, parser, BYTES_MAX, taken)
        costs.append(time.thread_time() - began)
        if costs[-1] <= READ_CPU_S:
            break
    assert min(costs) <= READ_CPU_S, f"{len(message)} bytes cost {min(costs):.3f} s"
    assert not taken.problem
    assert taken.drops.keys() <= DROP_REASONS.keys() - {"unforeseen"}
    for notice in taken.notices:
        assert max(len(notice.name), len(notice.text)) <= NOTICE_CHARS_MAX
    if found is not None:
        check_events([found.event])
        taken.waiting = [found]
    return taken


def check_any(message: bytes) -> None:
    """An event of another server, as it is written here, means the same to one that reads it again."""
    for found in read(message, read_of_any).waiting:
        for wire in "v1", "v2":
            rendered = RENDERERS[wire].render(Batch.of([found.event], [AT]), range(1))
            for again in filter(None, rendered):
                assert read(again, read_of_any).waiting == [MirrorMessage(AT, found.event)]


def check_own(message: bytes) -> None:
    """An event of ours is sent on as it came, but for its date, which follows from its position."""
    for found in read(message, parse).waiting:
        [again] = RENDERERS["v2"].render(Batch.of([found.event], [found.position]), range(1))
        assert json.loads(again)["payload"].keys() <= json.loads(message)["payload"].keys()
        assert read(again, parse).waiting == [found]


def values() -> st.SearchStrategy[Any]:
    """Draw JSON values: of any kind, size, number of items and depth."""
    numbers = st.integers() | st.sampled_from([*INTEGERS, *(-each - 1 for each in INTEGERS), 10**300])
    floats = st.floats() | st.sampled_from([1e20, -1e308, 2.0**63, 0.5])
    texts = st.text(max_size=20) | st.sampled_from(["\ud800", "did:plc:x", LIKE, "\0", "\u2028\n", DID])
    scalars = st.none() | st.booleans() | numbers | floats | texts
    keys = st.text(max_size=10) | st.sampled_from(["$type", "$link", "$bytes", "did", "seq", "payload"])
    trees = st.recursive(
        scalars, lambda one: st.lists(one, max_size=4) | st.dictionaries(keys, one, max_size=4), max_leaves=12
    )
    return trees | _costly


def _nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


# Nothing deeper: `json` writes up to a thousand levels. `deep` has more.
_costly: st.SearchStrategy[Any] = st.one_of(
    st.integers(1, 800).map(_nested),
    st.integers(1, 20_000).map(lambda count: [[]] * count),
    st.integers(1, 20_000).map(lambda count: [1e300] * (count // 5)),
    st.tuples(st.sampled_from([",", '"', "\\", "\0", "a", "é"]), st.integers(1, 1_000_000)).map(
        lambda text: text[0] * text[1]
    ),
    st.integers(1, 3_000).map(lambda count: {f"{count - i}": i for i in range(count)}),
)


@st.composite
def changed(draw: st.DrawFn, *wires: str) -> bytes:
    """Draw a message with some values, at any depth, changed, left out or added."""
    message = json.loads(draw(st.sampled_from(messages(*wires))))
    message = copied(message)
    for _ in range(draw(st.integers(1, 3))):
        change(draw, message, values())
    if draw(st.integers(0, 9)) == 0:
        message[draw(st.sampled_from(["payload", "$type", "kind", "did", "more"]))] = draw(values())
    return written(message)


def written(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


@st.composite
def spliced(draw: st.DrawFn) -> bytes:
    """Draw a message of ours with one value of an event replaced by another value, in the same form."""
    event = draw(st.sampled_from(events()))
    name = draw(st.sampled_from(["did", "collection", "rkey", "rev", "cid", "body", "body", "body"]))
    if name != "body":
        text = draw(
            st.text(max_size=10) | st.sampled_from(["a" * 3_000, "3l3f6nzhvkl2g", LIKE, DID, "b" * 201])
        )
        value = text.encode("utf-8", "surrogatepass")
    elif event.body and draw(st.booleans()):
        body = json.loads(event.body)
        change(draw, body, values())
        value = written(body)
    else:
        value = written(draw(values()))
    [message] = RENDERERS["v2"].render(Batch.of([event._replace(**{name: value})], [AT]), range(1))
    return bytes(message)


def deep(*wires: str) -> st.SearchStrategy[bytes]:
    """Draw a good message with one value replaced by what nests deeper than `json` can write."""
    whole = st.sampled_from(messages(*wires))
    lists = st.integers(1, 5_000).map(lambda levels: b"[" * levels + b"]" * levels)
    maps = st.integers(1, 5_000).map(lambda levels: b'{"a":' * levels + b"1" + b"}" * levels)
    places = st.sampled_from(
        [b'"a.example"', b'"ConsumerTooSlow"', b'"Heartbeat"', b"null", b'"too slow"', b"1"]
    )
    return st.builds(lambda all_, at, by: all_.replace(at, by, 1), whole, places, lists | maps)


def test_damaged_bytes_of_other_servers_are_events_or_dropped(fuzz: Fuzz) -> None:
    fuzz(check_any, damaged(st.sampled_from(messages("v1", "v2"))), 200)


def test_damaged_bytes_of_ours_are_events_or_dropped(fuzz: Fuzz) -> None:
    fuzz(check_own, damaged(st.sampled_from(messages("v2"))), 200)


def test_any_values_of_other_servers_are_events_or_dropped(fuzz: Fuzz) -> None:
    fuzz(check_any, changed("v1", "v2") | deep("v1", "v2"), 80)


def test_any_values_of_ours_are_events_or_dropped(fuzz: Fuzz) -> None:
    fuzz(check_own, spliced() | changed("v2") | deep("v2"), 100)


def test_any_json_is_an_event_or_dropped(fuzz: Fuzz) -> None:
    def check(message: bytes) -> None:
        check_any(message)
        check_own(message)

    fuzz(check, values().map(written), 40)


def test_any_stream_is_taken_without_an_error(fuzz: Fuzz) -> None:
    def check(run: Sequence[bytes]) -> None:
        for taken in (
            OwnStream(0, None, time.monotonic).read(run, AT),
            ForeignStream(None, Recent(), time.monotonic).read(run),
        ):
            assert taken.frames == len(run)
            assert not taken.problem
            check_events(taken.events)

    whole = st.sampled_from(messages("v1", "v2"))
    fuzz(check, st.lists(whole | damaged(whole) | spliced(), max_size=10), 40)
