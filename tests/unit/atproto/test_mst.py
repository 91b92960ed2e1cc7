from __future__ import annotations

from itertools import islice

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


def test_a_key_that_a_foreign_tree_has_in_a_wrong_layer_is_not_removed() -> None:
    """Layers of keys but the first of a node are not checked when a tree is loaded."""
    first, before, key = (f"k/{name}".encode() for name in ("08", "09", "10"))
    assert [mst_node.layer_of(each) for each in (first, before, key)] == [1, 0, 0]
    value = cid_of(b"")
    for below in (None, mst_node.Node(0, [before], [value], [None, None])):
        root = mst_node.Node(1, [first, key], [value, value], [None, below, None])
        assert mst.get(root, key) == value
        with pytest.raises(ValueError, match="wrong layer"):
            mst.remove(root, key)


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
    loaded = {name: mst_load.load(suite.trees[name], root) for name, root in suite.roots.items()}
    for case in suite.cases:
        side_a, side_b = suite.sides(case)
        before = mst_load.load(suite.trees[side_a], suite.roots[side_a])
        after = loaded[side_b]  # it is not changed
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


def keys_in_layer(layer: int, count: int) -> list[bytes]:
    """Return the first keys of a layer, in order."""
    keys = (f"k/{number:05}".encode() for number in range(100_000))
    return list(islice((key for key in keys if mst_node.layer_of(key) == layer), count))


class TestLoad:
    """A tree that anybody may have made costs no more than its blocks."""

    @staticmethod
    def root(*subtrees: Cid | None) -> bytes:
        [key] = keys_in_layer(3, 1)
        return mst_node.encode_node(mst_node.Node(3, [key], [cid_of(b"")], list(subtrees)))

    @staticmethod
    def keyless(below: Cid | None) -> bytes:
        return mst_node.encode_node(mst_node.Node(0, [], [], [below]))

    def blocks(self, root: bytes, *others: bytes) -> dict[bytes, bytes]:
        return {cid_of(block): block for block in (root, *others)}

    def refuse(self, problem: str, root: bytes, *others: bytes) -> None:
        with pytest.raises(ValueError, match=problem):
            mst_load.load(self.blocks(root, *others), cid_of(root))

    def test_a_chain_of_nodes_ends_at_the_lowest_layer(self) -> None:
        chain = [self.keyless(cid_of(b"not there"))]
        for _ in range(5_000):
            chain.append(self.keyless(cid_of(chain[-1])))
        self.refuse("is in layer -1", self.root(cid_of(chain[-1]), None), *chain)
        root = self.root(cid_of(chain[2]), None)
        with pytest.raises(mst.PartialTreeError):
            list(mst.nodes(mst_load.load(self.blocks(root, *chain[:3]), cid_of(root))))

    def test_a_node_that_is_there_twice(self) -> None:
        below = self.keyless(cid_of(b"not there"))
        self.refuse("twice", self.root(cid_of(below), cid_of(below)), below)

    def test_a_node_in_another_layer(self) -> None:
        [low] = keys_in_layer(0, 1)
        below = mst_node.encode_node(mst_node.Node(2, [low], [cid_of(b"")], [None, None]))
        self.refuse("is in layer 2", self.root(cid_of(below), None), below)

    def test_an_empty_node_below_the_root(self) -> None:
        self.refuse("is empty", self.root(mst_node.EMPTY_CID, None), mst_node.EMPTY_BLOCK)

    def test_a_root_without_keys(self) -> None:
        self.refuse("no keys", self.keyless(cid_of(b"not there")))
        assert mst.root_cid(mst_load.load({}, mst_node.EMPTY_CID)) == mst_node.EMPTY_CID

    def test_too_many_keys(self) -> None:
        tree = tree_of({f"k/{n:05}".encode(): cid_of(b"") for n in range(16_100)})
        with pytest.raises(ValueError, match="over 16,000 keys"):
            mst_load.load({node.cid: node.block for node in mst.nodes(tree)}, tree.cid)

    def test_a_node_of_too_many_items(self) -> None:
        keys = keys_in_layer(0, 1_700)
        node = mst_node.Node(0, keys, [cid_of(b"")] * 1_700, [None] * 1_701)
        self.refuse("over 16,000 items", mst_node.encode_node(node))

    def test_many_changes_of_a_large_node_are_encoded_once(self) -> None:
        keys = keys_in_layer(0, 1_000)
        root: mst_node.Root = mst_node.Node(0, keys, [cid_of(b"")] * 1_000, [None] * 1_001)
        before = mst.root_cid(root)
        added = [each for each in (key + b"x" for key in keys) if mst_node.layer_of(each) == 0][:100]
        for key in added:
            root, _ = mst.put(root, key, cid_of(b""))
            assert isinstance(root, mst_node.Node)
            assert root.block == b""
        assert mst.root_cid(root) != before
        for key in added:
            root, _ = mst.remove(root, key)
        assert mst.root_cid(root) == before
