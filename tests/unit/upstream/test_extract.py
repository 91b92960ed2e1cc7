from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import (
    DID,
    LIKE,
    REV,
    TIME,
    Cid,
    Op,
    Raw,
    account,
    car,
    cbor_map,
    cid_of,
    commit,
    commit_body,
    create,
    dag_cbor,
    delete,
    error,
    frame,
    from_json,
    head,
    identity,
    like,
    nested,
    op_body,
    sync,
)
from tests.decoding import OPS, UNSORTED_HEADER, Message, bodies, decode, rendered, spellings
from tests.fixtures import captured_frames, json_lines, json_of

from jetstream.delivery.renderers import RENDERERS
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, SYNC, UPDATE
from jetstream.upstream.drops import DROP_REASONS
from jetstream.upstream.envelope import MESSAGE_TYPES, OPS_MAX, read_envelope
from jetstream.upstream.extract import possible_keys, sync_of
from jetstream.verify.commit import claimed, examine_sync

# What the kinds of event are made of


def test_a_commit_is_its_ops_in_their_order() -> None:
    message = decode(commit(7, OPS))

    assert message[:2] == ("commit", 7)
    assert message.drops == []
    assert [event.kind for event in message.events] == [CREATE, DELETE, UPDATE]
    assert [event.rkey for event in message.events] == [b"1", b"2", b"3"]
    assert {event[1:3] + event[4:5] for event in message.events} == {
        (DID.encode(), LIKE.encode(), REV.encode())
    }
    assert [event.body for event in message.events] == [
        b'{"$type":"app.bsky.feed.like","n":1}',
        b"",
        b'{"$type":"app.bsky.feed.like","text":"<&>"}',
    ]
    assert from_json({"$link": message.events[0].cid.decode()}) == cid_of(OPS[0].block)
    assert message.events[1].cid == b""


def test_a_commit_may_have_no_ops() -> None:
    assert decode(commit(7, [])) == Message("commit", 7, [], [])


def test_an_identity() -> None:
    for handle in ({}, {"handle": None}, {"handle": 1}):
        assert decode(identity(7, **handle)).events[0].body == (
            b'{"did":"%s","seq":7,"time":"%s"}' % (DID.encode(), TIME.encode())
        )
    message = decode(identity(7, handle="yohenrique.bsky.social"))
    assert message == Message("identity", 7, message.events)
    assert message.events[0][:6] == (IDENTITY, DID.encode(), b"", b"", b"", b"")
    assert list(bodies(message)[0].items()) == [
        ("did", DID),
        ("handle", "yohenrique.bsky.social"),
        ("seq", 7),
        ("time", TIME),
    ]


def test_an_account() -> None:
    for status in ({}, {"status": None}, {"status": 1}):
        assert decode(account(7, **status)).events[0].body == (
            b'{"active":true,"did":"%s","seq":7,"time":"%s"}' % (DID.encode(), TIME.encode())
        )
    message = decode(account(7, active=False, status="deleted"))
    assert message.events[0][:6] == (ACCOUNT, DID.encode(), b"", b"", b"", b"")
    assert list(bodies(message)[0].items()) == [
        ("active", False),
        ("did", DID),
        ("seq", 7),
        ("status", "deleted"),
        ("time", TIME),
    ]


@pytest.mark.parametrize(
    "time", ["2026-02-24T14:05:20.5215469", "", "yesterday", '\0"\\\n', "x" * 64, "2024-13-45T99:99:99Z"]
)
def test_time_is_passed_on_whatever_it_says(time: str) -> None:
    """A real #account message came without a time zone: a deletion must not vanish for that."""
    for message in (decode(account(7, time=time)), decode(identity(7, time=time))):
        assert bodies(message)[0]["time"] == time
    assert len(decode(commit(7, time=time)).events) == 1


@pytest.mark.parametrize("text", ['"', "\\", "\n\0\x1f", "\u2028", "</script>", "عربي 👨‍👩‍👧‍👧"])
def test_whatever_text_comes_goes_out_as_json(text: str) -> None:
    handle, status = decode(identity(7, handle=text)), decode(account(7, status=text))

    assert bodies(handle)[0]["handle"] == bodies(status)[0]["status"] == text
    assert [one["identity"]["handle"] for one in rendered(handle)] == [text] * 3


def test_a_sync_is_an_event_with_its_blocks() -> None:
    blocks = car([(cid_of(b"the commit"), b"the commit")])
    [event] = decode(sync(7, blocks=blocks)).events
    text = base64.b64encode(blocks).decode().rstrip("=")

    assert event[:6] == (SYNC, DID.encode(), b"", b"", b"", b"")
    assert event.body.decode() == (
        f'{{"blocks":{{"$bytes":"{text}"}},"did":"{DID}","rev":"{REV}","seq":7,"time":"{TIME}"}}'
    )


@pytest.mark.parametrize("size", range(4))
def test_the_blocks_of_a_sync_are_base64_without_padding(size: int) -> None:
    [body] = bodies(decode(sync(7, blocks=b"x" * size)))

    assert from_json(body["blocks"]) == b"x" * size
    assert "=" not in body["blocks"]["$bytes"]


def test_the_sync_of_a_commit_proves_its_tree() -> None:
    """Of every captured commit: what is made is verified as any `#sync` is."""
    commits = [each for each in map(read_envelope, captured_frames()) if each.type == "commit"]
    for envelope in commits:
        event = sync_of(envelope)
        assert event is not None
        assert event[:6] == (SYNC, envelope.fields["repo"].encode(), b"", b"", b"", b"")
        body = json.loads(event.body)
        assert body.keys() == {"blocks", "did", "rev"}
        evidence = examine_sync(body | {"blocks": from_json(body["blocks"])})
        assert (evidence.did, evidence.rev) == (envelope.fields["repo"], envelope.fields["rev"])
        assert evidence.root == claimed(envelope.fields).root
    assert commits


@pytest.mark.parametrize(
    "fields", [{"blocks": None}, {"blocks": b"no CAR"}, {"commit": None}, {"commit": cid_of(b"another")}]
)
def test_a_commit_without_its_block_has_no_sync(fields: dict[str, Any]) -> None:
    (envelope,) = [each for each in map(read_envelope, captured_frames()) if each.type == "commit"][:1]
    assert sync_of(envelope._replace(fields=dict(envelope.fields) | fields)) is None


def test_the_key_of_a_sync_is_short_and_tells_its_number() -> None:
    """Else a log that a relay fills with syncs would make some hundred megabytes of keys."""
    keys = [decode(sync(seq, blocks=b"x" * 10_000)).events[0].key for seq in (7, 7, 8)]

    assert keys[0] == keys[1] != keys[2]
    assert len(b"".join(keys[0])) < 1_100


def test_unknown_fields_are_ignored() -> None:
    assert len(decode(commit(7, new={"a": [1.5]})).events) == 1
    assert (
        len(decode(dag_cbor({"t": "#commit", "op": 1, "v": 2}) + dag_cbor(commit_body(7, OPS))).events) == 3
    )
    assert len(decode(identity(7, new=None)).events) == 1


# Ops


def with_op(**fields: object) -> Message:
    """Decode a commit of three ops whose middle one is damaged."""
    body = commit_body(7, [like(1), like(2), like(3)])
    body["ops"][1] |= fields
    return decode(frame("#commit", body))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"action": "merge"}, "op_action"),
        ({"action": "Create"}, "op_action"),
        ({"action": ""}, "op_action"),
        ({"action": None}, "malformed"),
        ({"action": []}, "malformed"),
        ({"action": {}}, "malformed"),
        ({"path": None}, "malformed"),
        ({"path": b"app.bsky.feed.like/2"}, "malformed"),
        ({"path": ""}, "op_collection"),
        ({"path": "/2"}, "op_collection"),
        ({"path": "app.bsky/2"}, "op_collection"),
        ({"path": " app.bsky.feed.like/2"}, "op_collection"),
        ({"path": 'app.bsky.feed."/2'}, "op_collection"),
        ({"path": "x" * 1_000_000}, "op_collection"),
        ({"path": LIKE}, "op_rkey"),
        ({"path": f"{LIKE}/"}, "op_rkey"),
        ({"path": f"{LIKE}/.."}, "op_rkey"),
        ({"path": f"{LIKE}/2/3"}, "op_rkey"),
        ({"path": f"{LIKE}//2"}, "op_rkey"),
        ({"path": f"{LIKE}/2\n"}, "op_rkey"),
        ({"path": f'{LIKE}/"'}, "op_rkey"),
        ({"path": f"{LIKE}/{'x' * 513}"}, "op_rkey"),
        ({"cid": None}, "block_missing"),
        ({"cid": 1}, "block_missing"),
        ({"cid": b""}, "block_missing"),
        ({"cid": "bafyreic7dmhzkofxak6wq4tvtfgigfapswbn55d2ckkuzyya6i3v57ixoe"}, "block_missing"),
        ({"cid": cid_of(b"nowhere")}, "block_missing"),
        ({"cid": Cid(b"\x12\x20" + b"a" * 32)}, "block_missing"),
    ],
)
def test_a_bad_op_costs_no_sibling(fields: dict[str, object], reason: str) -> None:
    message = with_op(**fields)

    assert [event.rkey for event in message.events] == [b"1", b"3"]
    assert (message.seq, message.drops) == (7, [reason])


@pytest.mark.parametrize("op", [None, 1, [], "op", b"op"])
def test_an_op_is_a_map(op: object) -> None:
    body = commit_body(7, [like(1)])

    assert decode(frame("#commit", body | {"ops": [op, *body["ops"]]})).drops == ["malformed"]


@pytest.mark.parametrize("rkey", ["did:plc:a::did:web:b", "~", "...", "_", "a" * 512, "self", "%20"])
def test_odd_record_keys(rkey: str) -> None:
    message = decode(commit(7, [create(f"{LIKE}/{rkey}", {})]))

    assert [event.rkey.decode() for event in message.events] == ([rkey] if "%" not in rkey else [])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "record_type"),
        ("text", "record_type"),
        (Raw(b"\xff"), "record_cbor"),
        (Raw(b""), "record_cbor"),
        ({"a": 1.5}, "record_float"),
        (nested(129), "record_depth"),
        (nested(3_900), "record_depth"),
        (nested(10_000), "record_items"),
        ({"a": "\0" * 200_000}, "json_size"),
        ({"a": b"x" * (1 << 20)}, "record_size"),
    ],
)
def test_a_bad_record_costs_no_sibling(record: object, reason: str) -> None:
    message = decode(commit(7, [like(1), create(f"{LIKE}/2", record), like(3)]))

    assert [event.rkey for event in message.events] == [b"1", b"3"]
    assert message.drops == [reason]


def test_a_block_must_hash_to_its_cid() -> None:
    good, bad = like(1), like(2)
    blocks = car([(cid_of(good.block), good.block), (cid_of(bad.block), dag_cbor({"other": 1}))])
    body = commit_body(7, [good, bad], blocks=blocks)

    assert decode(frame("#commit", body)).drops == ["block_hash"]
    assert bodies(decode(frame("#commit", body), check_cid=False))[1] == {"other": 1}


@pytest.mark.parametrize("codec", [0x55, 0x70])
def test_a_record_is_named_by_a_cid_of_dag_cbor(codec: int) -> None:
    op = like(1)
    cid = cid_of(op.block, codec)
    body = commit_body(7, [op], blocks=car([(cid, op.block)]), ops=[op_body(op) | {"cid": cid}])

    assert decode(frame("#commit", body)).drops == ["block_hash"]


def test_unchecked_cids_are_cids_all_the_same() -> None:
    op, cid = like(1), Cid(b"\x07" * 36)
    body = commit_body(7, [op], blocks=car([(cid, op.block)]), ops=[op_body(op) | {"cid": cid}])

    assert decode(frame("#commit", body), check_cid=False).drops == ["block_hash"]


@pytest.mark.parametrize(
    "blocks", [None, b"", b"junk", "text", car([], {"version": 2}), car([])[:-1], Cid(car([]))]
)
def test_deletes_survive_an_unreadable_car(blocks: object) -> None:
    message = decode(commit(7, OPS, blocks=blocks))

    assert [event.kind for event in message.events] == [DELETE]
    assert set(message.drops) <= {"car", "block_missing"}
    assert len(message.drops) == 2


def test_a_delete_needs_no_cid() -> None:
    for cid in (None, 1, cid_of(b"")):
        body = commit_body(7, [], ops=[{"action": "delete", "path": f"{LIKE}/1", "cid": cid}])
        assert [event.kind for event in decode(frame("#commit", body)).events] == [DELETE]


def test_ops_may_hold_the_same_record() -> None:
    ops = [create(f"{LIKE}/{number}", {"text": "hi"}) for number in range(200)]
    op = ops[0]
    message = decode(commit(7, ops, blocks=car([(cid_of(op.block), op.block)])))

    assert len(message.events) == 200
    assert {event.body for event in message.events} == {b'{"text":"hi"}'}


def test_ops_that_name_a_large_record_without_end_are_cut_short() -> None:
    """A frame of a megabyte would else be a gigabyte of JSON."""
    op = create(f"{LIKE}/1", {"a": b"x" * 700_000})
    body = op_body(op)
    ops = [body | {"path": f"{LIKE}/{number}"} for number in range(999)]
    message = decode(commit(7, [op], ops=[*ops, op_body(delete(f"{LIKE}/1"))]))

    assert [event.kind for event in message.events] == [CREATE] * (len(message.events) - 1) + [DELETE]
    assert 4 <= len(message.events) <= 10
    assert set(message.drops) == {"commit_items"}
    assert len(message.events) + len(message.drops) == 1_000


# Keys


@pytest.mark.parametrize(
    "raw", [commit(7, OPS), commit(7, []), identity(7), account(7), sync(7), *captured_frames()]
)
def test_the_possible_keys_of_a_good_frame_are_those_of_its_events(raw: bytes) -> None:
    assert possible_keys(read_envelope(raw)) == [event.key for event in decode(raw).events]


@pytest.mark.parametrize("t", ["#handle", "#info", "#new"])
def test_a_frame_that_makes_no_event_has_no_keys(t: str) -> None:
    assert possible_keys(read_envelope(frame(t, {"seq": 7, "did": DID, "time": TIME}))) == []
    assert possible_keys(read_envelope(commit(7, repo="nobody"))) == []


def test_an_op_has_a_key_whatever_its_record_but_not_without_a_path() -> None:
    ops = [create(f"{LIKE}/1", 1.5), create("likes/2", {}), like(3), Op("merge", f"{LIKE}/4")]
    keys = possible_keys(read_envelope(commit(7, ops, blocks=b"")))

    assert [key[2] for key in keys] == [b"1", b"3"]


# Budgets


def nasty(number: int, items: int = 7_900) -> Op:
    """Create a record of many items, the costliest that passes."""
    return create(f"{LIKE}/{number}", {"a": Raw(head(4, items) + b"\x80" * items), "n": number})


def test_the_records_of_a_commit_have_a_budget() -> None:
    """Two hundred records of 2.5 ms each would hold the loop for half a second."""
    message = decode(commit(7, [nasty(number) for number in range(200)] + [delete(f"{LIKE}/x"), like(1)]))

    assert [event.kind for event in message.events] == [CREATE] * 6 + [DELETE]
    assert message.drops == ["commit_items"] * 195
    assert len(decode(commit(7, [nasty(number) for number in range(4)])).events) == 4


def test_many_short_records_share_the_budget() -> None:
    message = decode(commit(7, [nasty(number, 1_900) for number in range(900)]))

    assert 20 <= len(message.events) <= 30
    assert set(message.drops) == {"commit_items"}


@pytest.mark.parametrize("size", [1_900, 20_000, 99_000])
@pytest.mark.parametrize("text", ["\0", '"', "\n"])
def test_text_that_json_escapes_slowly_is_paid_for(text: str, size: int) -> None:
    count = min(OPS_MAX, 1_900_000 // (size + 60))
    writes = [create(f"{LIKE}/{number}", {"a": text * size, "n": number}) for number in range(count)]
    message = decode(commit(7, writes))

    assert set(message.drops) == {"commit_items"}
    assert 1_000_000 < len(message.events) * size < 1_500_000


def test_records_that_are_refused_are_paid_for() -> None:
    message = decode(commit(7, [nasty(number, 8_100) for number in range(200)]))

    assert message.drops == ["record_items"] * 6 + ["commit_items"] * 194


def test_a_thousand_posts_are_within_the_budget() -> None:
    text, uri = "hello " * 40, "at://did:plc:stk5dhwhpcjxtlwnhbknmfgx/app.bsky.feed.post/3l3f6nzhls32g"
    ref = {"cid": "bafyreihdlrrfxc4l5few7lso3u36zf655omeuso3y3dnersr5mm3r7mbyu", "uri": uri}
    post = {"$type": LIKE, "text": text, "langs": ["en"], "createdAt": TIME, "reply": [ref, ref]}

    message = decode(commit(7, [create(f"{LIKE}/{n}", post | {"n": n}) for n in range(1_000)]))
    assert (len(message.events), message.drops) == (1_000, [])


def test_a_block_that_hashes_to_nothing_is_not_hashed_without_end() -> None:
    """A thousand ops may name one block of a megabyte."""
    cid = cid_of(b"another")
    op = op_body(like(1)) | {"cid": cid}
    blocks = car([(cid, dag_cbor({"a": "x" * 1_000_000}))])

    message = decode(commit(7, ops=[op] * 999 + [op_body(delete(f"{LIKE}/1"))], blocks=blocks))
    assert [event.kind for event in message.events] == [DELETE]
    assert message.drops == ["block_hash"] * 7 + ["commit_items"] * 992


# Fields of identities and accounts


@pytest.mark.parametrize(
    ("message", "name", "bytes_max"),
    [
        (identity, "handle", 253),
        (identity, "time", 64),
        (account, "status", 64),
        (account, "time", 64),
    ],
)
def test_a_field_that_is_too_long_is_left_out(message: Any, name: str, bytes_max: int) -> None:
    for longest in ("x" * bytes_max, "é" * (bytes_max // 2), "😀" * (bytes_max // 4)):
        got = decode(message(7, **{name: longest}))
        assert (bodies(got)[0][name], got.drops) == (longest, ())
    good = bodies(decode(message(7, **{name: "x"})))[0]
    for longer in ("x" * (bytes_max + 1), "é" * (bytes_max // 2 + 1), "😀" * 64, "\0" * 4_000_000):
        got = decode(message(7, **{name: longer}))
        assert (got.seq, got.drops) == (7, ("field_size",))
        assert bodies(got) == [{key: value for key, value in good.items() if key != name}]


def test_several_fields_that_are_too_long_are_left_out() -> None:
    long = "x" * 5_000

    assert decode(identity(7, handle=long, time=long)).drops == ("field_size",) * 2
    assert decode(account(7, status=long, time=long)).drops == ("field_size",) * 2
    assert len(decode(commit(7, time=long)).events) == 1


def test_no_message_is_over_a_million_bytes() -> None:
    """Whatever is around a record, and whatever the wire."""
    longest = {"a": "x" * (990_000 - len('{"a":""}'))}
    did = "did:web:" + "a" * 2_040
    nsid = "a." * 126 + "b" * 65
    collection = f"com.{nsid[:200].rstrip('.')}.{'n' * 63}"
    raw = commit(7, [create(f"{collection}/{'k' * 512}", longest)], repo=did)
    other = identity(7, did=did, handle="\0" * 253, time="\0" * 64)

    assert len(decode(raw).events) == len(decode(other).events) == 1
    for message in (decode(raw), decode(other)):
        batch = Batch.of(message.events, [2**63 - 1])
        for renderer in RENDERERS.values():
            assert len(renderer.render(batch, range(1))[0]) <= 1_000_000


# Parts that are no DAG-CBOR


BAD_TEXT = Raw(b"\x63x\xed\xa0")


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    "damage",
    [
        {"path": Raw(head(3, 20) + LIKE.encode() + b"/\xff")},
        {"path": Raw(head(3, 22) + LIKE.encode() + b"/\xed\xa0\x80")},
        {"path": BAD_TEXT},
        {"action": BAD_TEXT},
        {"cid": BAD_TEXT, "action": "create"},
        {"cid": 1.5, "action": "create", "prev": BAD_TEXT},
    ],
)
@pytest.mark.parametrize("action", ["create", "update", "delete"])
def test_an_op_that_is_no_cbor_costs_no_sibling(place: int, damage: dict[str, object], action: str) -> None:
    body = commit_body(7, [like(1), like(2), like(3)])
    rkeys = [b"1", b"2", b"3"]
    body["ops"][place] |= {"action": action} | damage
    del rkeys[place]
    for raw in (frame("#commit", body), UNSORTED_HEADER + dag_cbor(body)):
        message = decode(raw)
        assert (message.type, message.seq, message.drops) == ("commit", 7, ["op_cbor"])
        assert [event.rkey for event in message.events] == rkeys


def test_an_op_that_repeats_a_field_costs_no_sibling() -> None:
    body = commit_body(7, [like(1), like(2), like(3)])
    for more in (("path", f"{LIKE}/4"), ("action", "delete"), ("cid", None)):
        ops = [body["ops"][0], cbor_map([*body["ops"][1].items(), more]), body["ops"][2]]
        message = decode(frame("#commit", body | {"ops": ops}))
        assert [event.rkey for event in message.events] == [b"1", b"3"]
        assert (message.seq, message.drops) == (7, ["op_cbor"])


@pytest.mark.parametrize(
    "value",
    [
        BAD_TEXT,
        Raw(b"\xf7"),
        Raw(b"\xf9\x7e\0"),
        Raw(head(6, 0) + b"\x60"),
        cbor_map([("a", 1), ("a", 2)]),
        cbor_map([(1, 1)]),
        Raw(head(0, 7, width=8)),
        nested(5_000),
    ],
)
@pytest.mark.parametrize("message", [commit, identity, account])
def test_an_unknown_field_may_be_anything(message: Any, value: object) -> None:
    for key in ("new", "zzzzzz"):
        assert decode(message(7, **{key: value})) == decode(message(7))
    header = cbor_map([("t", f"#{message.__name__}"), ("op", 1), ("v", value)])
    body = message(7)[len(dag_cbor({"t": f"#{message.__name__}", "op": 1})) :]
    assert decode(header + body) == decode(message(7))


def test_an_unknown_field_of_an_op_may_be_anything() -> None:
    body = commit_body(7, OPS)
    ops = [op | {"new": BAD_TEXT, "prev": Raw(b"\xf7")} for op in body["ops"]]

    assert decode(frame("#commit", body | {"ops": ops})) == decode(commit(7, OPS))


@pytest.mark.parametrize(
    ("message", "name"), [(identity, "handle"), (identity, "time"), (account, "status"), (account, "time")]
)
def test_a_field_that_cannot_be_read_is_left_out(message: Any, name: str) -> None:
    """A deletion must not vanish for its time."""
    got = decode(message(7, **{name: BAD_TEXT}))

    assert (got.seq, got.drops, len(got.events)) == (7, ("field_cbor",), 1)
    assert name not in bodies(got)[0]


# Damage


KINDS = {
    "commit": commit(7, OPS),
    "unsorted": UNSORTED_HEADER + dag_cbor(commit_body(7, OPS)),
    "identity": identity(7, handle="a.example"),
    "account": account(7, active=False, status="deleted"),
    "sync": sync(7),
    "error": error("FutureCursor", message="Cursor in the future."),
    "info": frame("#info", {"name": "OutdatedCursor", "message": None}),
}


def flips(raw: bytes, step: int = 1) -> Iterator[bytes]:
    """Flip one bit after the other, or every `step`-th."""
    for place in range(0, len(raw) * 8, step):
        damaged = bytearray(raw)
        damaged[place // 8] ^= 1 << place % 8
        yield bytes(damaged)


def assert_damage_is_counted(message: Message, ops: int) -> None:
    """Every op is an event or counted, or else the whole frame is counted; and what comes out is JSON."""
    assert message.type in MESSAGE_TYPES
    assert set(message.drops) <= set(DROP_REASONS)
    assert (
        message.drops
        or message.type not in {"commit", "identity", "account", "sync", "unknown"}
        or message.events
    )
    if message.type == "commit" and type(message.events) is list:
        assert len(message.events) + len(message.drops) == ops
    assert len(list(rendered(message))) == spellings(message)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_cut_at_any_length_is_counted(kind: str) -> None:
    """What stands before the cut is read no further than for the `seq`, which moves the cursor on."""
    raw = KINDS[kind]
    messages = [decode(raw[:size]) for size in range(len(raw))]
    seq_at = raw.find(b"\x63seq\x07") + 5 if b"\x63seq" in raw else len(raw)

    assert messages == [
        Message("unknown", 7 if size >= seq_at else None, drops=("frame_cbor",)) for size in range(len(raw))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_with_any_bit_flipped_costs_at_most_its_events(kind: str) -> None:
    for damaged in flips(KINDS[kind], step=3 if kind == "unsorted" else 1):
        assert_damage_is_counted(decode(damaged), len(OPS))


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_with_any_byte_replaced_costs_at_most_its_events(kind: str) -> None:
    raw = KINDS[kind]
    for place in range(len(raw)):
        for byte in (0x00, 0x80, 0xA0, 0xFF):
            assert_damage_is_counted(decode(raw[:place] + bytes((byte,)) + raw[place + 1 :]), len(OPS))


def test_captured_frames_cut_anywhere() -> None:
    frames = captured_frames()
    cut = [(raw, raw[:size]) for number, raw in enumerate(frames) for size in range(number, len(raw), 97)]

    assert len(cut) > 4_000
    for whole, raw in cut:
        message = decode(raw)
        assert message == Message("unknown", message.seq, drops=("frame_cbor",))
        assert message.seq in {None, decode(whole).seq}


def test_captured_frames_with_bits_flipped() -> None:
    frames = captured_frames()
    small = min(frames, key=len)
    damaged = [(flipped, small) for flipped in flips(small, step=2)]
    damaged += [(flipped, raw) for raw in frames for flipped in flips(raw, step=997)]

    assert len(damaged) > 10_000
    for flipped, raw in damaged:
        assert_damage_is_counted(decode(flipped), len(decode(raw).events))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=50)
    | st.sampled_from(
        [DID, REV, LIKE, f"{LIKE}/1", "create", "delete", cid_of(like(1).block), 7, "#commit", 1, -1]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["seq", "repo", "did", "rev", "ops", "blocks", "time", "tooBig", "active", "status", "handle", "name"]
)
OP_FIELDS = st.dictionaries(st.sampled_from(["action", "path", "cid", "prev"]), VALUES)


@given(
    st.sampled_from(["#commit", "#identity", "#account", "#sync", "#info", "#new"]),
    st.dictionaries(FIELDS, VALUES, max_size=3),
    st.lists(OP_FIELDS, max_size=3),
)
@settings(max_examples=80)
def test_hostile_fields_never_surprise(
    t: str, fields: dict[str, object], ops: list[dict[str, object]]
) -> None:
    body = commit_body(7, OPS) | {"did": DID, "active": True}
    body["ops"] += [op_body(like(1)) | op for op in ops]
    message = decode(frame(t, body | fields))

    assert message.type in MESSAGE_TYPES
    assert set(message.drops) <= set(DROP_REASONS)
    assert len(list(rendered(message))) == spellings(message)


@given(VALUES, VALUES)
def test_hostile_headers_and_bodies_never_surprise(header: object, body: object) -> None:
    message = decode(dag_cbor(header) + dag_cbor(body))

    assert message.events == ()
    assert message.drops or message.type != "unknown"


# Captured frames and published scenarios


def test_every_event_of_the_captured_frames() -> None:
    messages = [decode(raw) for raw in captured_frames()]
    expected = json_lines("firehose/events.v1.jsonl")
    events = [event for message in messages for event in message.events]

    assert [message.drops for message in messages] == [[]] * 90
    assert len(events) == len(expected) == 92
    for event, wanted in zip(events, expected, strict=True):
        op = wanted["commit"]
        assert event.did.decode() == wanted["did"]
        assert [event.collection.decode(), event.rkey.decode(), event.rev.decode()] == [
            op["collection"],
            op["rkey"],
            op["rev"],
        ]
        assert event.kind.decode() == op["operation"][0]
        assert event.cid.decode() == op.get("cid", "")
        assert (json.loads(event.body) if event.body else None) == op.get("record")


@pytest.mark.parametrize(
    ("number", "ops"), [(4621317030, 1), (4621317332, 1), (4621332152, 42), (4623075231, 1)]
)
def test_commits_from_before_sync_1_1(number: int, ops: int) -> None:
    body = from_json(json_of(f"commits/firehose_commit_{number}.json"))
    message = decode(frame("#commit", body))

    assert (message.seq, message.drops, len(message.events)) == (number, [], ops)
    assert [f"{event.collection.decode()}/{event.rkey.decode()}" for event in message.events] == [
        op["path"] for op in body["ops"]
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("account_lifecycle", [("identity", 1), ("account", 1), ("sync", 1), ("account", 1)]),
        (
            "deactivation",
            [("commit", 1), ("account", 1), ("commit", 1), ("account", 1), *[("commit", 1)] * 4],
        ),
        ("legacy", [("identity", 1), ("account", 1), ("commit", 1)]),
        ("post_lifecycle", [*[("commit", 1)] * 5, ("commit", 3)]),
        ("post_lifecycle_legacy", [("commit", 1)] * 6),
    ],
)
def test_what_a_strict_relay_would_pass_is_read(name: str, expected: list[tuple[str, int]]) -> None:
    frames = [message["frame"] for message in json_of(f"relay-scenarios/{name}.json")["messages"]]
    messages = [decode(dag_cbor(one["header"]) + dag_cbor(from_json(one["body"]))) for one in frames]

    assert [(message.type, len(message.events)) for message in messages] == expected
    assert [list(message.drops) for message in messages] == [[]] * len(messages)


def test_a_rev_that_a_strict_relay_refuses_is_refused() -> None:
    messages = json_of("relay-scenarios/rev_ordering.json")["messages"]
    frames = [
        dag_cbor(one["frame"]["header"]) + dag_cbor(from_json(one["frame"]["body"])) for one in messages
    ]

    assert [list(decode(raw).drops) for raw in frames] == [[], ["rev"], [], []]
