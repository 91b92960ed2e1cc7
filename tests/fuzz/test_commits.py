"""Signed commits, damaged as bytes, values and trees: each has a verdict, soon, and no forged one passes.

None of them shows an error of our own (`crash`).
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from typing import Any, get_args

import pytest
from hypothesis import strategies as st
from tests.builders import Cid as Link
from tests.builders import dag_cbor, frame
from tests.fixtures import ROOT, captured_frames
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutations import cheap_values, damaged
from tests.fuzz.test_frames import changed_bodies
from tests.signed import DID, KEY, NOTE, Account, fields_of, public

from jetstream.admission.examiners.examination import Task, examine
from jetstream.admission.examiners.pool import Examiners
from jetstream.admission.holding import _are_equal
from jetstream.admission.message import Message
from jetstream.atproto.car import checked_blocks, write_car
from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.cid import Cid, cid_of
from jetstream.atproto.encoded_key import parse_multikey
from jetstream.atproto.mst_node import layer_of
from jetstream.metrics import Metrics
from jetstream.simulator.signing import sign_commit
from jetstream.upstream.envelope import Envelope, read_envelope
from jetstream.upstream.lenient import DAMAGED
from jetstream.verify.chain import Judgement, latest_rev
from jetstream.verify.commit import claimed
from jetstream.verify.verdict import REFUSALS, VERDICTS, Refused
from jetstream.verify.verifier import Verifier
from jetstream.verify_modes import Mode

# A failing case may be long, and is shown whole.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

LATEST = latest_rev((1 << 53) - 1_000_000_000)
VERIFY_CPU_S = 0.1  # a bound for a machine that is slow, not a goal
TRIES = 3
MODES: tuple[Mode, ...] = get_args(Mode)
OWN = parse_multikey(KEY.multibase)
# One whose processes are not started: it tells how messages are divided among them.
POOL = Examiners("full", 2, Metrics().workers())


def judge(message: Envelope, *, full: bool = True) -> Judgement | None:
    """Verify a message within the bound; None for one that is not signed."""
    costs = []
    for _ in range(TRIES):
        verifier = Verifier(lambda *_: (public(),), full=full)
        began = time.thread_time()
        judgement = None
        if not message.drop and message.type == "commit":
            judgement = verifier.verify_commit(message.fields, LATEST)
        elif not message.drop and message.type == "sync":
            judgement = verifier.verify_sync(message.fields, LATEST)
        costs.append(time.thread_time() - began)
        if costs[-1] <= VERIFY_CPU_S:
            break
    assert min(costs) <= VERIFY_CPU_S, f"it cost {min(costs):.3f} s"
    if judgement is not None:
        assert judgement.verdict.name in VERDICTS
        assert judgement.verdict.reason in {"", *REFUSALS}
        assert len(judgement.verdict.detail) < 2_000
    return judgement


@cache
def commits() -> list[dict[str, Any]]:
    """Return good commits of one account, of one op and of several."""
    account = Account()
    account.create(*(f"{number}" for number in range(80)))
    made = [account.create(f"new{number}") for number in range(8)]
    made += [account.write(("update", f"{number}", "text")) for number in range(4)]
    made += [account.write(("delete", f"{number}", "")) for number in range(4, 8)]
    made.append(account.write(("create", "a", ""), ("update", "9", "x"), ("delete", "10", "")))
    return [fields_of(revision) for revision in made]


def frames() -> list[bytes]:
    bodies = [frame("#commit", _links(fields)) for fields in commits()]
    return bodies + (captured_frames() if (ROOT / "firehose" / "frames.bin.zst").exists() else [])


def _links(fields: dict[str, Any]) -> dict[str, Any]:
    """Mark links as such, which are bytes in what was decoded."""
    ops = [
        {name: Link(value) if isinstance(value, bytes) else value for name, value in op.items()}
        for op in fields["ops"]
    ]
    links = {name: Link(fields[name]) for name in ("commit", "prevData")}
    return fields | links | {"ops": ops}


def test_damaged_bytes_have_a_verdict(fuzz: Fuzz) -> None:
    def check(data: bytes) -> None:
        judge(read_envelope(data))

    fuzz(check, damaged(st.sampled_from(frames())), 800)


def test_damaged_blocks_have_a_verdict(fuzz: Fuzz) -> None:
    """The CAR is damaged inside a message that is whole."""
    cases = st.sampled_from(commits()).flatmap(
        lambda fields: damaged(st.just(fields["blocks"])).map(lambda blocks: fields | {"blocks": blocks})
    )

    def check(fields: dict[str, Any]) -> None:
        for full in (True, False):
            judge(Envelope("commit", 1, fields), full=full)
        with suppress(Refused):
            claimed(fields)

    fuzz(check, cases, 400)


def test_changed_values_have_a_verdict(fuzz: Fuzz) -> None:
    def check(case: tuple[str, dict[str, Any]]) -> None:
        judge(read_envelope(frame(*case)))

    fuzz(check, changed_bodies(), 60)


@st.composite
def forged(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw a good commit, and the same with its unsigned fields changed in a way that has meaning."""
    fields = draw(st.sampled_from(commits()))
    ops = [dict(op) for op in fields["ops"]]
    path = f"{NOTE}/{draw(st.sampled_from(['0', '11', 'a', 'new3', 'none']))}"
    cid = draw(st.sampled_from([op["cid"] or op["prev"] for op in ops] + [cid_of(b"other")]))
    match draw(st.sampled_from(("add", "remove", "path", "cid", "prev", "swap", "prevData"))):
        case "add":
            ops.append({"action": "delete", "path": path, "cid": None, "prev": bytes(cid)})
        case "remove":
            ops.pop()
        case "path":
            ops[0]["path"] = path
        case "cid" if ops[0]["cid"]:
            ops[0]["cid"] = bytes(cid)
        case "prev" if "prev" in ops[0]:
            ops[0]["prev"] = bytes(cid)
        case "swap":
            ops[0] |= {"action": "delete", "cid": None, "prev": ops[0]["cid"] or ops[0]["prev"]}
        case _:
            return fields, fields | {"prevData": bytes(cid)}
    return fields, fields | {"ops": ops}


def test_no_forged_commit_passes(fuzz: Fuzz) -> None:
    def check(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
        good, changed = case
        judgement = judge(Envelope("commit", 1, changed))
        assert judgement is not None
        name = judgement.verdict.name
        assert name == ("ok" if changed == good else "refused"), judgement.verdict

    fuzz(check, forged(), 800)


@st.composite
def trees(draw: st.DrawFn) -> Any:
    """Draw a commit, rightly signed, whose tree nodes were changed and put under their right CIDs."""
    fields = draw(st.sampled_from(commits()))
    _, blocks = checked_blocks(fields["blocks"])
    nodes = {cid: block for cid, block in blocks.items() if block.startswith(b"\xa2\x61e")}
    renamed: dict[bytes, Cid] = {}
    made: list[tuple[Cid, bytes]] = []
    # Children come after their parents, so that the new CID of each is known when its parent is written.
    for cid, before in reversed(nodes.items()):
        node = before
        for old, new in renamed.items():
            node = node.replace(old, new)
        if draw(st.integers(0, 3)) == 0:
            node = draw(damaged(st.just(node)) | cheap_values().map(_node_of))
        renamed[cid] = cid_of(node)
        made.append((renamed[cid], node))
    root = next(iter(nodes))
    commit = sign_commit(DID, fields["rev"], renamed[root], KEY)
    records = [(Cid(cid), block) for cid, block in blocks.items() if cid not in nodes]
    car = write_car(commit.cid, [*made, *records, commit])
    return fields | {"blocks": car, "commit": bytes(commit.cid)}


def _node_of(value: Any) -> bytes:
    try:
        return encode_cbor({"e": value, "l": None})
    except (TypeError, ValueError, OverflowError):
        return encode_cbor({"e": [], "l": None})


def test_any_tree_has_a_verdict(fuzz: Fuzz) -> None:
    def check(fields: dict[str, Any]) -> None:
        for full in (True, False):
            assert judge(Envelope("commit", 1, fields), full=full) is not None

    fuzz(check, trees(), 120)


def admit(fields: dict[str, Any]) -> None:
    """Do with a commit what a server does before it is judged, in each mode. No error is our own."""
    task = Task("commit", made(fields), (OWN,))
    assert [places for _, places in POOL._divided([task])] == [[0]]
    for mode in MODES:
        finding = examine(task, mode)
        assert finding.refused is None or finding.refused.reason != "crash", finding.refused.traceback
    messages = [Message("a", 1, Envelope("commit", 1, made(fields)), DID, 0.0) for _ in range(2)]
    _are_equal(*messages)
    assert messages[0].size > 0


@dataclass(frozen=True)
class Deep:
    """Lists in lists. Hypothesis cannot show them, so they are made of this one where they are needed."""

    depth: int


def made(value: Any) -> Any:
    """Return a copy of a value, with its lists in lists made."""
    if isinstance(value, Deep):
        lists: Any = 0
        for _ in range(value.depth):
            lists = [lists]
        return lists
    if type(value) is dict:
        return {name: made(item) for name, item in value.items()}
    return [made(item) for item in value] if type(value) is list else value


def odd_values() -> st.SearchStrategy[Any]:
    """Draw what a producer may write in place of any field that an event does not need."""
    fixed = [
        None,
        0,
        1,
        True,
        False,
        0.5,
        "",
        "text",
        b"",
        b"\xff" * 36,
        b"\x01\x71",
        [],
        [1],
        {},
        {"a": 1},
        DAMAGED,
    ]
    return st.sampled_from(fixed) | st.builds(Deep, st.integers(1, 3_000))


@st.composite
def odd_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a good commit with other values in some fields, and in some fields of its ops, known or not."""
    fields = dict(draw(st.sampled_from(commits())))
    for name in draw(st.sets(st.sampled_from(("blocks", "commit", "prevData", "since")), max_size=3)):
        fields[name] = draw(odd_values())
    ops = [dict(op) for op in fields["ops"]]
    for name in draw(st.sets(st.sampled_from(("action", "path", "cid", "prev", "more")), max_size=2)):
        ops[0][name] = draw(odd_values())
    fields["ops"] = draw(st.sampled_from((ops, [], [*ops, DAMAGED], [draw(odd_values()), *ops])))
    return fields


def test_any_value_of_any_field_is_admitted(fuzz: Fuzz) -> None:
    fuzz(admit, odd_fields(), 250)


RECORD = encode_cbor({"$type": NOTE})
KEYS = [f"{NOTE}/{number:03}" for number in range(400)]
# Some keys of each layer, and all of these in order.
LAYERS = [list(islice((key for key in KEYS if layer_of(key.encode()) == layer), 8)) for layer in range(3)]
SOME_KEYS = sorted(key for keys in LAYERS for key in keys)


@st.composite
def misplaced(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a commit whose tree has keys in layers that are not theirs, and ops of these keys.

    The first key of each node is in its own layer, or the tree would not be loaded. A link may be a byte
    string that is no CID, as the root of the tree may be.
    """
    value = bytes(cid_of(RECORD))
    blocks: list[tuple[Cid, bytes]] = []
    placed: list[str] = []

    def node(low: str, high: str, layer: int) -> bytes | None:
        """Add a node with keys between two, and nodes below it; return its link, None if there is no key."""
        firsts = [key for key in LAYERS[layer] if low < key < high] if layer >= 0 else []
        if not firsts:
            return None
        first = draw(st.sampled_from(firsts))
        others = [key for key in SOME_KEYS if first < key < high]
        keys = [first, *sorted(draw(st.sets(st.sampled_from(others), max_size=3)) if others else ())]
        placed.extend(keys)
        links = [link(*between, layer - 1) for between in pairwise([low, *keys, high])]
        entries = [
            {"k": key.encode(), "p": 0, "v": Link(value), "t": after}
            for key, after in zip(keys, links[1:], strict=True)
        ]
        return add(dag_cbor({"e": entries, "l": links[0]}))

    def link(low: str, high: str, layer: int) -> bytes | None:
        match draw(st.sampled_from(("node", "node", "node", "none", "none", "none", "unknown", "odd"))):
            case "node":
                return node(low, high, layer)
            case "unknown":
                return Link(cid_of(b"?"))
            case "odd":
                return b"\xff" * 36
        return None

    def add(block: bytes) -> bytes:
        blocks.append((cid_of(block), block))
        return Link(blocks[-1][0])

    root = node("", "~", draw(st.integers(1, 2)))
    assert root is not None
    root = draw(st.sampled_from((root, root, root, bytes(root), b"\xff" * 36)))
    rev = commits()[0]["rev"]
    unsigned = {"did": DID, "rev": rev, "data": root, "prev": None, "version": 3}
    commit = add(dag_cbor(unsigned | {"sig": KEY.sign(dag_cbor(unsigned))}))
    add(RECORD)
    # Of most trees, the ops are creations that it holds: they are undone one after another.
    holds = draw(st.integers(0, 3)) > 0
    pool, actions = (placed, ["create"]) if holds else (SOME_KEYS, ["create", "update", "delete"])
    ops: list[dict[str, Any]] = []
    for name in draw(st.lists(st.sampled_from(pool), min_size=holds, max_size=6, unique=True)):
        action = draw(st.sampled_from(actions))
        op = {"path": name, "action": action, "cid": None if action == "delete" else value}
        if action != "create":
            op["prev"] = draw(st.sampled_from((value, b"\xff" * 36)))
        ops.append(op)
    previous = draw(st.sampled_from((bytes(cid_of(b"before")), b"\xee" * 36, None)))
    changed = {"rev": rev, "blocks": write_car(Cid(commit), blocks), "commit": bytes(commit), "ops": ops}
    since = draw(st.sampled_from((None, "3mbd3542k2422")))
    return commits()[0] | changed | {"prevData": previous, "since": since}


def test_keys_in_wrong_layers_and_links_that_are_none_are_no_errors(fuzz: Fuzz) -> None:
    def check(fields: dict[str, Any]) -> None:
        admit(fields)
        for full in (True, False):
            assert judge(Envelope("commit", 1, fields), full=full) is not None

    fuzz(check, misplaced(), 250)
