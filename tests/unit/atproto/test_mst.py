from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures import fixture, json_of
from tests.signed import Suite, apply, carried, names, parse_cid, tree_of

from jetstream.atproto import mst, mst_load, mst_node
from jetstream.atproto.cid import Cid, cid_of
from jetstream.atproto.mst import Change
from jetstream.simulator.repo import build

KEYS = st.text("ab/0", min_size=1, max_size=6).map(str.encode)
VALUES = st.binary(max_size=2).map(cid_of)
TREES = st.dictionaries(KEYS, VALUES, max_size=60)


@given(TREES)
def test_a_tree_depends_on_its_contents_and_not_on_their_order(contents: dict[bytes, Cid]) -> None:
    backwards = dict(reversed(contents.items()))
    built = build(sorted(contents.items()))
    mst.encode_changed(built)
    assert tree_of(contents).cid == tree_of(backwards).cid == built.cid
    assert list(mst.items(built)) == sorted(contents.items())


@given(TREES, st.lists(st.tuples(KEYS, st.none() | VALUES), max_size=20))
def test_a_tree_is_a_sorted_dictionary(
    contents: dict[bytes, Cid], steps: list[tuple[bytes, Cid | None]]
) -> None:
    root: mst_node.Root = tree_of(contents)
    for key, value in steps:
        expected = contents.pop(key, None)
        root, found = mst.remove(root, key) if value is None else mst.put(root, key, value)
        if value is not None:
            contents[key] = value
        assert found == expected
        assert mst.get(root, key) == value
    assert mst.root_cid(root) == tree_of(contents).cid


@settings(max_examples=300)
@given(TREES, TREES)
def test_the_blocks_of_a_commit_suffice_to_invert_it(
    before: dict[bytes, Cid], after: dict[bytes, Cid]
) -> None:
    changes = [
        Change(key, before.get(key), after.get(key))
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    ]
    old = tree_of(before)
    old_names, old_cid = names(old), old.cid
    new = apply(old, changes)
    assert new.cid == tree_of(after).cid
    partial = mst_load.load(carried(old_names, new, changes), new.cid)
    assert mst.root_cid(mst.invert(partial, changes)) == old_cid


@given(TREES, st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=5))
def test_only_changed_nodes_are_encoded_again(
    contents: dict[bytes, Cid], added: list[tuple[bytes, Cid]]
) -> None:
    root = tree_of(contents)
    old = names(root)
    for key, value in added:
        root, _ = mst.put(root, key, value)
    fresh = {node.cid for node in mst.encode_changed(root)}
    assert names(root) <= old | fresh
    assert root.cid in fresh or root.cid in old
    assert mst.encode_changed(root) == []


def test_a_change_behind_an_unknown_node_is_refused() -> None:
    root = tree_of({f"k/{n}".encode(): cid_of(b"") for n in range(50)})
    partial = mst_load.load({root.cid: root.block}, root.cid)
    with pytest.raises(mst.PartialTreeError):
        mst.invert(partial, [Change(f"k/{n}".encode(), None, cid_of(b"")) for n in range(50)])


def test_an_operation_that_the_tree_does_not_hold_is_refused() -> None:
    root = tree_of({b"k/1": cid_of(b"")})
    with pytest.raises(ValueError, match="the operation says"):
        mst.invert(root, [Change(b"k/1", None, cid_of(b"other"))])


def test_the_empty_tree_has_its_known_cid() -> None:
    assert mst.empty().block == mst_node.encode_node(mst.empty()) == bytes.fromhex("a2616580616cf6")
    assert str(mst.empty().cid) == "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"


def test_layers_are_those_of_the_published_vectors() -> None:
    cases = json_of("interop/mst/key_heights.json")
    assert cases
    for case in cases:
        assert mst_node.layer_of(case["key"].encode()) == case["height"], case["key"]


def test_the_published_keys_lie_in_the_layer_that_they_name() -> None:
    lines = fixture("interop/mst/example_keys.txt").read_text().split()
    assert len(lines) > 100
    assert [key for key in lines if mst_node.layer_of(key.encode()) != int(key[1 : key.index("/")])] == []


def test_prefixes_are_those_of_the_published_vectors() -> None:
    cases = json_of("interop/mst/common_prefix.json")
    assert cases
    for case in cases:
        left, right = case["left"].encode(), case["right"].encode()
        assert mst_node.shared_prefix(left, right) == case["len"], (left, right)


def test_the_published_commit_proofs_are_covered_and_inverted() -> None:
    cases = json_of("interop/firehose/commit-proof-fixtures.json")
    assert len(cases) == 6
    for case in cases:
        leaf = parse_cid(case["leafValue"])
        before = tree_of({key.encode(): leaf for key in case["keys"]})
        changes = [Change(key.encode(), None, leaf) for key in case["adds"]]
        changes += [Change(key.encode(), leaf, None) for key in case["dels"]]
        before_names, before_cid = names(before), before.cid
        after = apply(before, changes)
        assert (str(before_cid), str(after.cid)) == (case["rootBeforeCommit"], case["rootAfterCommit"])
        blocks = carried(before_names, after, changes)
        assert {str(Cid(name)) for name in blocks} >= set(case["blocksInProof"]), case["comment"]
        proof = {name: block for name, block in blocks.items() if str(Cid(name)) in case["blocksInProof"]}
        assert mst.root_cid(mst.invert(mst_load.load(proof, after.cid), changes)) == before_cid, case[
            "comment"
        ]


def test_every_case_of_the_public_test_suite_is_covered_and_inverted() -> None:
    suite = Suite(fixture("mst-test-suite.tar.zst"))
    for case in suite.cases:
        side_a, side_b = suite.sides(case)
        before = mst_load.load(suite.trees[side_a], suite.roots[side_a])
        after = mst_load.load(suite.trees[side_b], suite.roots[side_b])
        assert isinstance(before, mst_node.Node)
        assert isinstance(after, mst_node.Node)
        changes = suite.changes(case)
        before_names, before_cid = names(before), before.cid
        assert apply(before, changes).cid == after.cid, case["description"]
        published = suite.minimal(case, suite.trees[side_b])
        for blocks in (published, carried(before_names, after, changes)):
            undone = mst.invert(mst_load.load(blocks, after.cid), changes) if changes else after
            assert mst.root_cid(undone) == before_cid, case["description"]
    assert len(suite.cases) == 16_384
