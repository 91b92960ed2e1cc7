"""Signed commits, damaged as bytes, values and trees: each has a verdict, soon, and no forged one passes."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
from hypothesis import strategies as st
from tests.builders import Cid as Link
from tests.builders import frame
from tests.fixtures import ROOT, captured_frames
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutations import cheap_values, damaged
from tests.fuzz.test_frames import changed_bodies
from tests.signed import DID, KEY, NOTE, Account, fields_of, public

from jetstream.atproto.car import checked_blocks, write_car
from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.cid import Cid, cid_of
from jetstream.simulator.signing import sign_commit
from jetstream.upstream.envelope import Envelope, read_envelope
from jetstream.verify.chain import Judgement, latest_rev
from jetstream.verify.commit import claimed
from jetstream.verify.verdict import REFUSALS, VERDICTS, Refused
from jetstream.verify.verifier import Verifier

# A failing case may be long, and is shown whole.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

LATEST = latest_rev((1 << 53) - 1_000_000_000)
VERIFY_CPU_S = 0.1  # a bound for a machine that is slow, not a goal
TRIES = 3


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
