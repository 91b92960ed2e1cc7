from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures import fixture, json_of
from tests.signed import Suite, apply, carried, names, parse_cid, tree_of

from jetstream.atproto import mst, mst_load, mst_node
from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.cid import Cid, cid_of
from jetstream.atproto.mst import Change, PartialTreeError
from jetstream.verify import proof

KEYS = st.text("ab/0", min_size=1, max_size=6).map(str.encode)
VALUES = st.binary(max_size=2).map(cid_of)
TREES = st.dictionaries(KEYS, VALUES, max_size=60)
RECORD, OTHER = cid_of(b"record"), cid_of(b"other")


def keys_in_layer(layer: int, prefix: str = "k/") -> Iterator[bytes]:
    """Yield keys of one layer, in order of their number."""
    number = 0
    while True:
        key = f"{prefix}{number:05}".encode()
        if mst_node.layer_of(key) == layer:
            yield key
        number += 1


def changed(before: Mapping[bytes, Cid], after: Mapping[bytes, Cid]) -> list[Change]:
    return [
        Change(key, before.get(key), after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def commit(before: Mapping[bytes, Cid], changes: list[Change]) -> tuple[Cid, Cid, dict[bytes, bytes]]:
    """Return the roots before and after some changes, and the blocks that their commit carries."""
    tree = tree_of(before)
    old_names, old_cid = names(tree), tree.cid
    after = apply(tree, changes)
    return old_cid, after.cid, carried(old_names, after, changes)


def check(before: Mapping[bytes, Cid], changes: list[Change]) -> None:
    """The changes are found after they are applied, and undone from what their commit carries."""
    old, new, blocks = commit(before, changes)
    proof.find(blocks, new, changes)
    assert proof.undo(blocks, new, changes) == old


@settings(max_examples=300)
@given(TREES, TREES)
def test_ops_that_are_applied_and_undone_give_the_tree_before(
    before: dict[bytes, Cid], after: dict[bytes, Cid]
) -> None:
    check(before, changed(before, after))


@settings(max_examples=600)
@given(TREES, KEYS, st.none() | VALUES)
def test_one_op_is_undone_like_many(before: dict[bytes, Cid], key: bytes, value: Cid | None) -> None:
    """The way by bytes, and the way by nodes, which are taken for one op and for more."""
    changes = [Change(key, before.get(key), value)]
    if before.get(key) == value:
        return
    check(before, changes)
    old, new, blocks = commit(before, changes)
    assert mst.root_cid(mst.invert(mst_load.load(blocks, new), changes)) == old


@settings(max_examples=300)
@given(TREES, KEYS, st.none() | VALUES, st.sampled_from(("key", "before", "after", "kind")))
def test_an_op_that_was_not_made_is_not_proven(
    contents: dict[bytes, Cid], key: bytes, value: Cid | None, wrong: str
) -> None:
    made = Change(key, contents.get(key), value)
    if made.before == value:
        return
    old, new, blocks = commit(contents, [made])
    claimed = {
        "key": made._replace(key=key + b"a"),
        "before": made._replace(before=OTHER),
        "after": made._replace(after=OTHER),
        "kind": made._replace(after=None, before=value or made.before),
    }[wrong]
    if claimed == made:
        return
    try:
        undone = proof.undo(blocks, new, [claimed])
    except (ValueError, PartialTreeError):
        return
    assert undone != old


def test_an_op_that_is_left_out_is_noticed() -> None:
    contents = {f"k/{n}".encode(): RECORD for n in range(50)}
    made = [Change(b"k/new", None, RECORD), Change(b"k/7", RECORD, None)]
    old, new, blocks = commit(contents, made)
    assert proof.undo(blocks, new, made) == old
    assert proof.undo(blocks, new, made[:1]) != old


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["create", "update", "delete"])
def test_one_op_in_each_layer(layer: int, kind: str) -> None:
    contents = {f"k/{n:05}".encode(): RECORD for n in range(0, 400, 2)}
    present = [key for key in contents if mst_node.layer_of(key) == layer]
    absent = [key for key, _ in zip(keys_in_layer(layer), range(40), strict=False) if key not in contents]
    for key in absent[:20] if kind == "create" else present[:20]:
        after = None if kind == "delete" else OTHER
        check(contents, [Change(key, contents.get(key), after)])


def test_the_first_and_the_last_record_of_a_repository() -> None:
    for key in (b"k/0", next(keys_in_layer(3))):
        check({}, [Change(key, None, RECORD)])
        check({key: RECORD}, [Change(key, RECORD, None)])


def test_a_key_above_all_others_comes_and_goes() -> None:
    top = next(keys_in_layer(4))
    low = dict.fromkeys((next(keys_in_layer(0, "a/")), next(keys_in_layer(0, "z/"))), RECORD)
    check(low, [Change(top, None, RECORD)])
    check(low | {top: RECORD}, [Change(top, RECORD, None)])


def test_no_ops_change_nothing() -> None:
    assert proof.undo({}, RECORD, []) == RECORD
    proof.find({}, RECORD, [])


def test_a_missing_node_is_no_contradiction() -> None:
    contents = {f"k/{n}".encode(): RECORD for n in range(50)}
    _, new, blocks = commit(contents, [made := Change(b"k/new", None, RECORD)])
    for name in blocks:
        without = {cid: block for cid, block in blocks.items() if cid != name}
        with pytest.raises(PartialTreeError):
            proof.undo(without, new, [made])
    for call in (proof.undo, proof.find):
        with pytest.raises(PartialTreeError):
            call({}, new, [made, made._replace(key=b"k/other")])


def node(entries: object, left: object = None) -> bytes:
    return encode_cbor({"e": entries, "l": left})


def entry(
    key: object, prefix: object = 0, value: object = RECORD, subtree: object = None
) -> dict[str, object]:
    return {"k": key, "p": prefix, "v": value, "t": subtree}


LOW = next(keys_in_layer(0))
HIGH = next(keys_in_layer(1))


def test_a_created_key_in_a_wrong_layer_is_a_contradiction() -> None:
    low = [key for key, _ in zip(keys_in_layer(0), range(40), strict=False) if key > HIGH]
    below = node([entry(low[0])])
    for link in (None, cid_of(below)):
        root = node([entry(HIGH, 0, RECORD, link), entry(low[1])])
        blocks: dict[bytes, bytes] = {cid_of(root): root, cid_of(below): below}
        changes = [Change(HIGH, None, RECORD), Change(low[1], None, RECORD)]
        with pytest.raises(ValueError, match="wrong layer"):
            proof.undo(blocks, cid_of(root), changes)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\x80",
        b"\xa0",
        encode_cbor({"e": []}),
        encode_cbor({"l": None}),
        b"\x81" * 10_000,
        node({"k": LOW}),
        node([[LOW]]),
        node([{"k": LOW}]),
        node([entry("text")]),
        node([entry(5)]),
        node([entry(LOW, "0")]),
        node([entry(LOW, None)]),
        node([entry(LOW, -1)]),
        node([entry(LOW, 1 << 40)]),
        node([entry(LOW, 0, b"")]),
        node([entry(LOW, 0, 1 << 40)]),
        node([entry(LOW, 0, None)]),
        node([entry(LOW, 0, RECORD, 1 << 40)]),
        node([entry(LOW, 0, RECORD, 0)]),
        node([entry(LOW, 0, RECORD, b"")]),
        node([entry(LOW, 0, RECORD, [1])]),
        node([entry(LOW)], 7),
        node([entry(LOW)], 0),
        node([entry(LOW)], b""),
        node([entry(HIGH, 0, RECORD, RECORD)], 1 << 40),
        node([entry(HIGH, 0, RECORD, RECORD)], 0),
        node([entry(b"a", 0, RECORD, 1 << 40), entry(HIGH, 0, RECORD, RECORD)]),
        node([entry(b"a", 0, RECORD, 0), entry(HIGH, 0, RECORD, RECORD)]),
        node([entry(LOW)], b"\x01"),
        node([entry(b"a" * 2_000), entry(LOW)]),
        node([entry(LOW), entry(LOW)]),
        node([entry(b"z"), entry(b"a")]),
        node([], RECORD),
        node([entry(HIGH, 0, RECORD, cid_of(node([])))]),
    ],
)
@pytest.mark.parametrize("key", [LOW, HIGH, b"\0", b"z" * 1_024])
def test_what_is_no_node_is_refused(block: bytes, key: bytes) -> None:
    blocks: dict[bytes, bytes] = {cid_of(block): block, cid_of(node([])): node([])}
    other = Change(b"k/other", RECORD, None)
    for change in (Change(key, None, RECORD), Change(key, OTHER, RECORD), Change(key, RECORD, None)):
        for changes in ([change], [change, other]):
            for call in (proof.find, proof.undo):
                try:
                    call(blocks, cid_of(block), changes)
                except (ValueError, PartialTreeError):
                    continue


def test_the_published_commit_proofs_are_undone() -> None:
    cases = json_of("interop/firehose/commit-proof-fixtures.json")
    assert len(cases) == 6
    for case in cases:
        leaf = parse_cid(case["leafValue"])
        changes = [Change(key.encode(), None, leaf) for key in case["adds"]]
        changes += [Change(key.encode(), leaf, None) for key in case["dels"]]
        after = apply(tree_of({key.encode(): leaf for key in case["keys"]}), changes)
        whole: dict[bytes, bytes] = {each.cid: each.block for each in mst.nodes(after)}
        proven = {name: block for name, block in whole.items() if str(Cid(name)) in case["blocksInProof"]}
        for blocks in (whole, proven):
            proof.find(blocks, after.cid, changes)
            undone = proof.undo(blocks, after.cid, changes)
            assert str(Cid(undone)) == case["rootBeforeCommit"], case["comment"]


def test_every_case_of_the_public_test_suite_is_undone_from_all_nodes_and_from_the_fewest() -> None:
    suite = Suite(fixture("mst-test-suite.tar.zst"))
    full = minimal = 0
    for case in suite.cases:
        side_a, side_b = suite.sides(case)
        before, after, whole = suite.roots[side_a], suite.roots[side_b], suite.trees[side_b]
        changes = suite.changes(case)
        proof.find(whole, after, changes)
        assert proof.undo(whole, after, changes) == before, case["description"]
        full += 1
        if changes:
            assert proof.undo(suite.minimal(case, whole), after, changes) == before, case["description"]
            minimal += 1
    assert (full, minimal) == (16_384, 16_256)
