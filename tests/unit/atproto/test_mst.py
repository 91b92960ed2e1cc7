from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import libipld
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures import fixture, json_of

from jetstream.atproto import mst, mst_node
from jetstream.atproto.cid import Cid, cid_of
from jetstream.atproto.mst import Change
from jetstream.simulator import check
from jetstream.simulator.repo import build, covering_proof

KEYS = st.text("ab/0", min_size=1, max_size=6).map(str.encode)
VALUES = st.binary(max_size=2).map(cid_of)
TREES = st.dictionaries(KEYS, VALUES, max_size=60)


def parse_cid(text: str) -> Cid:
    return Cid(libipld.decode_multibase(text)[1])


def tree_of(contents: dict[bytes, Cid]) -> mst_node.Node:
    root = mst.empty()
    for key, value in contents.items():
        root, _ = mst.put(root, key, value)
    mst.encode_changed(root)
    return root


def apply(root: mst_node.Node, changes: Iterable[Change]) -> mst_node.Node:
    top: mst_node.Root = root
    for change in changes:
        if change.after is None:
            top, before = mst.remove(top, change.key)
        else:
            top, before = mst.put(top, change.key, change.after)
        assert before == change.before
    assert isinstance(top, mst_node.Node)
    mst.encode_changed(top)
    return top


def names(root: mst_node.Node) -> set[Cid]:
    return {node.cid for node in mst.nodes(root)}


def carried(old: set[Cid], after: mst_node.Node, changes: Iterable[Change]) -> dict[bytes, bytes]:
    """Give the blocks that a commit carries: what is new, and the cover of every changed key."""
    sent = [node for node in mst.nodes(after) if node.cid not in old]
    sent += [node for change in changes for node in covering_proof(after, change.key)]
    return {node.cid: node.block for node in sent}


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
    partial = mst.load(carried(old_names, new, changes), new.cid)
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
    partial = mst.load({root.cid: root.block}, root.cid)
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
        assert mst.root_cid(mst.invert(mst.load(proof, after.cid), changes)) == before_cid, case["comment"]


class Suite:
    """The public test suite of tree differences: its trees by file name, and its cases."""

    def __init__(self, archive: Path) -> None:
        self.trees: dict[str, dict[bytes, bytes]] = {}
        self.roots: dict[str, Cid] = {}
        self.cases: list[dict[str, Any]] = []
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(archive.read_bytes())
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            for name, data in self._files(tar):
                if name.endswith(".car"):
                    (self.roots[name],), self.trees[name] = check.read_car(data)
                elif "/tests/" in f"/{name}" and name.endswith(".json"):
                    self.cases.append(json.loads(data))

    @staticmethod
    def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name.removeprefix("./"), file.read()


def test_every_case_of_the_public_test_suite_is_covered_and_inverted() -> None:
    suite = Suite(fixture("mst-test-suite.tar.zst"))
    for case in suite.cases:
        side_a, side_b = (case["inputs"][side].removeprefix("./") for side in ("mst_a", "mst_b"))
        before = mst.load(suite.trees[side_a], suite.roots[side_a])
        after = mst.load(suite.trees[side_b], suite.roots[side_b])
        assert isinstance(before, mst_node.Node)
        assert isinstance(after, mst_node.Node)
        changes = [
            Change(
                op["rpath"].encode(),
                op["old_value"] and parse_cid(op["old_value"]),
                op["new_value"] and parse_cid(op["new_value"]),
            )
            for op in case["results"]["record_ops"]
        ]
        before_names, before_cid = names(before), before.cid
        assert apply(before, changes).cid == after.cid, case["description"]
        known = {parse_cid(name) for name in case["results"]["inductive_proof_nodes"]}
        published = {name: block for name, block in suite.trees[side_b].items() if name in known}
        for blocks in (published, carried(before_names, after, changes)):
            undone = mst.invert(mst.load(blocks, after.cid), changes) if changes else after
            assert mst.root_cid(undone) == before_cid, case["description"]
    assert len(suite.cases) == 16_384
