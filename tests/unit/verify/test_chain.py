from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.signed import DID, START_US, rev

from jetstream.atproto.cid import cid_of
from jetstream.atproto.tid import tid
from jetstream.verify import chain
from jetstream.verify.chain import Judgement, State, judge, screen
from jetstream.verify.commit import Before, Evidence
from jetstream.verify.verdict import OK, REPLAY, UNVERIFIED

ROOT, OTHER, NEXT = cid_of(b"root"), cid_of(b"other"), cid_of(b"next")
STATE = State(rev(5), chain.root_of(ROOT))
SYNCED = STATE._replace(by_sync=True)
LATEST = chain.latest_rev(START_US + 1_000)


def evidence(
    number: int = 6,
    since: str = rev(5),
    prev_root: bytes | None = ROOT,
    root: bytes = NEXT,
    before: Before = Before.PROVEN,
) -> Evidence:
    return Evidence(DID, rev(number), since, prev_root, root, before, b"", b"")


AFTER = State(rev(6), chain.root_of(NEXT))
LEGACY = {"prev_root": None, "before": Before.LEGACY}
INCOMPLETE = {"before": Before.INCOMPLETE}
SYNC = {"since": "", "prev_root": None, "before": Before.SYNC}


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        # What follows the state.
        ({}, "ok"),
        ({"since": ""}, "ok"),
        ({"before": Before.FOUND}, "ok"),
        ({"before": Before.CLAIMED}, "ok"),
        (LEGACY, "legacy"),
        (INCOMPLETE, "incomplete"),
        (SYNC | {"root": ROOT}, "ok"),
        # What follows something else.
        ({"since": rev(4)}, "gap"),
        ({"prev_root": OTHER}, "gap"),
        ({"since": rev(4), "prev_root": OTHER}, "gap"),
        ({"since": "", "prev_root": None}, "gap"),
        (LEGACY | {"since": rev(4)}, "gap"),
        (LEGACY | {"since": ""}, "gap"),
        (INCOMPLETE | {"since": rev(4)}, "gap"),
        (INCOMPLETE | {"prev_root": OTHER}, "refused: proof"),
        (INCOMPLETE | {"prev_root": None}, "refused: proof"),
        (SYNC, "gap"),
        # What is not above it.
        ({"number": 4}, "replay"),
        ({"number": 5, "root": ROOT}, "replay"),
        (INCOMPLETE | {"number": 4, "prev_root": OTHER}, "replay"),
        (INCOMPLETE | {"number": 5, "root": ROOT, "prev_root": OTHER}, "replay"),
        ({"number": 5}, "refused: equivocation"),
        (SYNC | {"number": 5, "root": ROOT}, "replay"),
        (SYNC | {"number": 5}, "refused: equivocation"),
    ],
)
def test_a_message_is_judged_by_the_state(changed: dict[str, object], verdict: str) -> None:
    given_evidence = evidence(**changed)  # type: ignore[arg-type]
    judged = judge(STATE, given_evidence, signed=True)
    assert judged.verdict.label == verdict
    assert judged.missing_after == (STATE.rev if verdict == "gap" else "")
    passed = verdict in {"ok", "gap", "legacy", "incomplete"}
    assert judged.state == (
        State(given_evidence.rev, chain.root_of(given_evidence.root), given_evidence.before is Before.SYNC)
        if passed
        else STATE
    )


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "ok"),
        ({"since": "", "prev_root": None}, "ok"),
        (LEGACY, "legacy"),
        (SYNC, "ok"),
        (INCOMPLETE, "refused: proof"),
    ],
)
def test_an_unknown_repository_begins_with_any_message(changed: dict[str, object], verdict: str) -> None:
    judged = judge(None, evidence(**changed), signed=True)  # type: ignore[arg-type]
    assert judged.verdict.label == verdict
    after = AFTER._replace(by_sync=changed is SYNC)
    assert judged.state == (None if verdict.startswith("refused") else after)


@pytest.mark.parametrize(
    ("state", "changed", "verdict", "missing_after"),
    [
        (None, {}, "unverified", ""),
        (STATE, {}, "unverified", ""),
        (STATE, {"since": rev(4)}, "unverified", rev(5)),
        (STATE, INCOMPLETE | {"prev_root": OTHER}, "refused: proof", ""),
        # Without a signature, nobody is accused, and the first of two messages counts.
        (STATE, {"number": 5}, "replay", ""),
        (STATE, {"number": 4}, "replay", ""),
    ],
)
def test_a_message_without_a_key_is_unverified(
    state: State | None, changed: dict[str, object], verdict: str, missing_after: str
) -> None:
    judged = judge(state, evidence(**changed), signed=False)  # type: ignore[arg-type]
    assert (judged.verdict.label, judged.missing_after) == (verdict, missing_after)
    assert judged.state == (AFTER if verdict == "unverified" else state)


CAR = b"head" + ROOT + b"tail"


@pytest.mark.parametrize(
    ("state", "number", "blocks", "verdict"),
    [
        (SYNCED, 4, CAR, "replay"),
        (SYNCED, 6, CAR, None),
        (None, 6, CAR, None),
        (STATE, 6, CAR, None),
        (STATE, 4, CAR, "replay"),
        (STATE, 4, None, "replay"),
        (STATE, 5, CAR, "replay"),
        (STATE, 5, b"another tree", None),
        (STATE, 5, None, None),
        (None, 300_001_001, CAR, "refused: future_rev"),
        (STATE, 300_001_001, CAR, "refused: future_rev"),
        (STATE, 300_000_999, CAR, None),
    ],
)
def test_the_rev_alone_says_what_is_known_and_what_is_ahead(
    state: State | None, number: int, blocks: bytes | None, verdict: str | None
) -> None:
    for is_sync in (False, True):
        screened = screen(state, rev(number), blocks, LATEST, is_sync=is_sync)
        assert (screened and screened.label) == verdict


def test_the_commit_of_a_sync_is_no_repeat_until_it_has_come() -> None:
    commit, sync = evidence(number=5, root=ROOT), evidence(number=5, root=ROOT, before=Before.SYNC)
    assert screen(SYNCED, rev(5), CAR, LATEST, is_sync=True) == REPLAY
    assert screen(SYNCED, rev(5), CAR, LATEST, is_sync=False) is None
    assert judge(SYNCED, commit, signed=True) == Judgement(OK, STATE)
    assert judge(SYNCED, commit, signed=False) == Judgement(UNVERIFIED, STATE)
    assert judge(SYNCED, sync, signed=True) == Judgement(REPLAY, SYNCED)
    assert judge(STATE, sync, signed=True) == Judgement(REPLAY, STATE)
    assert judge(STATE, commit, signed=True) == Judgement(REPLAY, STATE)


def test_another_tree_at_the_rev_of_a_sync_is_equivocation() -> None:
    judged = judge(SYNCED, evidence(number=5, root=OTHER), signed=True)
    assert (judged.verdict.label, judged.state) == ("refused: equivocation", SYNCED)


@pytest.mark.parametrize("state", [None, STATE])
def test_the_state_of_a_sync_says_so(state: State | None) -> None:
    judged = judge(state, evidence(before=Before.SYNC), signed=True)
    assert judged.state is not None
    assert judged.state.by_sync
    following = judge(
        judged.state, evidence(number=7, since=rev(6), prev_root=judged.state.root), signed=True
    )
    assert following.state is not None
    assert not following.state.by_sync


def test_what_is_judged_twice_is_a_replay() -> None:
    judged = judge(STATE, evidence(), signed=True)
    assert judge(judged.state, evidence(), signed=True) == Judgement(REPLAY, judged.state)


@given(
    st.integers(0, (1 << 53) - 1), st.integers(0, 1_023), st.binary(min_size=16, max_size=16), st.booleans()
)
def test_a_state_is_packed_in_24_bytes(time_us: int, clock_id: int, root: bytes, by_sync: bool) -> None:
    state = State(tid(time_us, clock_id), root, by_sync)
    assert len(state.packed()) == 24
    assert State.unpacked(state.packed()) == state


@given(st.integers(0, (1 << 53) - 1), st.integers(0, (1 << 53) - 1))
def test_packed_states_sort_by_rev(one: int, other: int) -> None:
    packed = [State(tid(each, 0), bytes(16)).packed() for each in (one, other)]
    assert (packed[0] < packed[1]) == (tid(one, 0) < tid(other, 0))
