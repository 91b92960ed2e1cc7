from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import Op, account, cid_of, commit, create, dag_cbor, delete, event, from_json, identity
from tests.decoding import decode
from tests.fixtures import captured_frames, json_lines

from jetstream.delivery.renderers import RENDERERS, Renderer
from jetstream.delivery.renderers.classic import CLASSIC
from jetstream.delivery.renderers.template import TemplateRenderer, notice
from jetstream.delivery.renderers.v1 import V1
from jetstream.delivery.renderers.v2 import V2
from jetstream.ingest import Stamper
from jetstream.model.batch import Batch
from jetstream.model.event import KIND_NAMES, SYNC

LIKED = {
    "$type": "app.bsky.feed.like",
    "createdAt": "2024-09-05T06:11:06.451Z",
    "subject": {
        "cid": "bafyreihdlrrfxc4l5few7lso3u36zf655omeuso3y3dnersr5mm3r7mbyu",
        "uri": "at://did:plc:ou4u4h3khiaym4a43r7uwp4f/app.bsky.feed.post/3l3e3vz53lu2d",
    },
}
REPO, FOLLOWER, NAMED = (
    f"did:plc:{name}"
    for name in ("stk5dhwhpcjxtlwnhbknmfgx", "rfov6bpyztcnedeyyzgfq42k", "ufbl4k27gp6kzas5glhz7fim")
)
EXAMPLES = [
    (
        1725516666734038,
        commit(1, [create("app.bsky.feed.like/3l3f6nzhls32g", LIKED)], repo=REPO, rev="3l3f6nzhvkl2g"),
        (
            b'{"did":"did:plc:stk5dhwhpcjxtlwnhbknmfgx","time_us":1725516666734038,"type":"com","commit":'
            b'{"rev":"3l3f6nzhvkl2g","type":"c","collection":"app.bsky.feed.like","rkey":"3l3f6nzhls32g","record":'
            b'{"$type":"app.bsky.feed.like","createdAt":"2024-09-05T06:11:06.451Z","subject":{"cid":'
            b'"bafyreihdlrrfxc4l5few7lso3u36zf655omeuso3y3dnersr5mm3r7mbyu","uri":'
            b'"at://did:plc:ou4u4h3khiaym4a43r7uwp4f/app.bsky.feed.post/3l3e3vz53lu2d"}}}}'
        ),
    ),
    (
        1725516666833633,
        commit(2, [delete("app.bsky.graph.follow/3l3dn7tku762u")], repo=FOLLOWER, rev="3l3f6nzl3cv2s"),
        (
            b'{"did":"did:plc:rfov6bpyztcnedeyyzgfq42k","time_us":1725516666833633,"type":"com","commit":'
            b'{"rev":"3l3f6nzl3cv2s","type":"d","collection":"app.bsky.graph.follow","rkey":"3l3dn7tku762u"}}'
        ),
    ),
    (
        1725516665234703,
        identity(1409752997, did=NAMED, handle="yohenrique.bsky.social"),
        (
            b'{"did":"did:plc:ufbl4k27gp6kzas5glhz7fim","time_us":1725516665234703,"type":"id","identity":'
            b'{"did":"did:plc:ufbl4k27gp6kzas5glhz7fim","handle":"yohenrique.bsky.social","seq":1409752997,'
            b'"time":"2024-09-05T06:11:04.870Z"}}'
        ),
    ),
    (
        1725516665333808,
        account(1409753013, did=NAMED),
        (
            b'{"did":"did:plc:ufbl4k27gp6kzas5glhz7fim","time_us":1725516665333808,"type":"acc","account":'
            b'{"active":true,"did":"did:plc:ufbl4k27gp6kzas5glhz7fim","seq":1409753013,'
            b'"time":"2024-09-05T06:11:04.870Z"}}'
        ),
    ),
]


def rendered(renderer: Renderer, batch: Batch) -> list[bytes]:
    return renderer.render(batch, range(len(batch)))


@pytest.mark.parametrize(
    ("time", "frame", "expected"), EXAMPLES, ids=["create", "delete", "identity", "account"]
)
def test_the_four_examples_byte_for_byte(time: int, frame: bytes, expected: bytes) -> None:
    batch = Stamper(0, lambda: time).stamp(decode(frame).events)

    assert rendered(CLASSIC, batch) == [expected]


def test_the_v1_wire_of_a_create_a_delete_an_identity_and_an_account() -> None:
    messages = [rendered(V1, Batch.of(decode(frame).events, [time]))[0] for time, frame, _ in EXAMPLES]
    cid = cid_of(dag_cbor(LIKED))

    assert messages[0].startswith(
        b'{"did":"did:plc:stk5dhwhpcjxtlwnhbknmfgx","time_us":1725516666734038,"kind":"commit","commit":'
        b'{"rev":"3l3f6nzhvkl2g","operation":"create","collection":"app.bsky.feed.like","rkey":"3l3f6nzhls32g","record":{'
    )
    assert list(json.loads(messages[0])["commit"]) == [
        "rev",
        "operation",
        "collection",
        "rkey",
        "record",
        "cid",
    ]
    assert from_json({"$link": json.loads(messages[0])["commit"]["cid"]}) == cid
    assert messages[1:] == [
        EXAMPLES[1][2]
        .replace(b'"type":"com"', b'"kind":"commit"')
        .replace(b'"type":"d"', b'"operation":"delete"'),
        EXAMPLES[2][2].replace(b'"type":"id"', b'"kind":"identity"'),
        EXAMPLES[3][2].replace(b'"type":"acc"', b'"kind":"account"'),
    ]


# Real events


def classic(v1: dict[str, Any]) -> dict[str, Any]:
    """Spell an event of the v1 wire as the classic one does."""
    kind = v1["kind"]
    spelled = {
        "did": v1["did"],
        "type": {"commit": "com", "identity": "id", "account": "acc"}[kind],
        kind: v1[kind],
    }
    if kind == "commit":
        op = {"type" if key == "operation" else key: value for key, value in v1[kind].items() if key != "cid"}
        spelled[kind] = op | {"type": op["type"][0]}
    return spelled


# Of what is rendered of the captured frames, from position 1: both wires stay as they are, to the
# byte.
V1_SHA256 = "4ed291f3c600d2f4c09f9a356831c5d0f4d40b6d17e04fa11f225d1840de1442"
CLASSIC_SHA256 = "6fb6eba13bbf55df43d596e012f7a57798f2a4adead50376dfea0c8b9fd2fc42"


def untimed(message: bytes) -> dict[str, Any]:
    return {key: value for key, value in json.loads(message).items() if key != "time_us"}


def test_every_event_of_the_captured_frames_in_both_wires() -> None:
    events = [event for frame in captured_frames() for event in decode(frame).events]
    expected = json_lines("firehose/events.v1.jsonl")
    batch = Batch.of(events, range(1, len(events) + 1))

    assert len(events) == len(expected) == 92
    assert sha256(b"\n".join(rendered(V1, batch))).hexdigest() == V1_SHA256
    assert sha256(b"\n".join(rendered(CLASSIC, batch))).hexdigest() == CLASSIC_SHA256
    for wanted, v1, other in zip(expected, rendered(V1, batch), rendered(CLASSIC, batch), strict=True):
        assert untimed(v1) == {key: wanted[key] for key in wanted if key != "time_us"}
        assert untimed(other) == classic(wanted)


def upstream(v1: dict[str, Any], seq: int) -> bytes:
    """Make the frame that an event of the v1 wire must have come of."""
    if v1["kind"] == "identity":
        return identity(**v1["identity"])
    if v1["kind"] == "account":
        return account(**v1["account"])
    op = v1["commit"]
    path = f"{op['collection']}/{op['rkey']}"
    return commit(
        seq, [Op(op["operation"], path, from_json(op.get("record")))], repo=v1["did"], rev=op["rev"]
    )


def test_golden_events_of_every_kind_come_back_from_their_frames() -> None:
    golden = json_lines("firehose/golden_v1.jsonl")
    batches = [Batch.of(decode(upstream(v1, 7)).events, [v1["time_us"]]) for v1 in golden]

    assert {v1["kind"] for v1 in golden} == {"commit", "identity", "account"}
    assert {v1["commit"]["operation"] for v1 in golden if "commit" in v1} == {"create", "update", "delete"}
    assert [json.loads(rendered(V1, batch)[0]) for batch in batches] == golden
    assert [untimed(rendered(CLASSIC, batch)[0]) for batch in batches] == [classic(v1) for v1 in golden]


# Any event


@pytest.mark.parametrize("renderer", RENDERERS.values(), ids=RENDERERS.keys())
def test_percent_signs_are_only_that(renderer: Renderer) -> None:
    odd = event(did="did:web:a%3A%b%d", body=b'{"text":"100% %b %d %(x)s"}')
    message = json.loads(rendered(renderer, Batch.of([odd], [1]))[0])
    message = message.get("payload", message)

    assert message["did"] == "did:web:a%3A%b%d"
    assert message.get("commit", message)["record"] == {"text": "100% %b %d %(x)s"}


KINDS = [event(kind, rkey=str(number)) for number, kind in enumerate([*KIND_NAMES] * 2)]


@pytest.mark.parametrize("renderer", RENDERERS.values(), ids=RENDERERS.keys())
@given(indices=st.lists(st.integers(0, 11), unique=True).map(sorted))
def test_some_events_are_rendered_as_in_a_run(renderer: Renderer, indices: list[int]) -> None:
    batch = Batch.of(KINDS, range(12))
    run = renderer.render(batch, range(12))

    assert [bool(message) for message in run] == [each.kind != SYNC or renderer is V2 for each in KINDS]
    assert renderer.render(batch, indices) == [run[index] for index in indices]


@given(st.sets(st.sampled_from([*KIND_NAMES])), st.sampled_from([range(12), range(3, 8), [0, 4, 9, 11]]))
def test_a_kind_without_a_template_is_declined(known: set[bytes], indices: range | list[int]) -> None:
    renderer = TemplateRenderer("few", {kind: notice(b'"kind":"x"', b"x") for kind in known})
    messages = renderer.render(Batch.of(KINDS, range(12)), indices)

    assert [bool(message) for message in messages] == [KINDS[index].kind in known for index in indices]
