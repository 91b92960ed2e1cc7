"""Load the part of a Merkle search tree whose blocks are there. `mst` has the operations on it.

A commit carries the nodes on the paths to its ops. All that can be reached from its root is loaded, since the
ops may be anywhere in it. The blocks are foreign, so what they say of the shape of the tree is checked here:
a tree that is loaded is bounded, has its keys in order in each node, and has no node twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from jetstream.atproto.cid import Cid
from jetstream.atproto.mst_node import Node, Root, Subtree, decode_node, layer_of

# Keys of all nodes that are loaded together: 20 ms. A commit of 200 ops carries 200 paths; with ten nodes of
# five keys each, that are 10,000.
_LOADED_KEYS_MAX: Final = 16_000


def load(blocks: Mapping[bytes, bytes], root: Cid) -> Root:
    """Return the tree of a root CID. Subtrees whose block is not in `blocks` stay a `Cid`.

    Each block is decoded once at most, the depth is that of the root's layer, and the number of keys is
    limited: so the cost of any tree is. The layers of first keys are checked, those of other keys are not.
    Raises ValueError for a block that is not a node, keys that are not in order, a node in a wrong layer, a
    node that is there twice, and too many keys.
    """
    block = blocks.get(root)
    if block is None:
        return root
    loader = Loader(blocks)
    keys, values, links = loader.decode(root, block)
    if not keys:
        if links != [None]:
            raise ValueError(f"the root {root} of a tree has a subtree and no keys")
        return Node(0, [], [], [None], block, root)
    layer = layer_of(keys[0])
    return Node(layer, keys, values, loader.subtrees(links, layer - 1), block, root)


class Loader:
    """Loads the nodes of one tree, each once."""

    __slots__ = ("_blocks", "_keys_left", "_seen")

    def __init__(self, blocks: Mapping[bytes, bytes]) -> None:
        # By their CID, which each hashes to (`car.checked_blocks`).
        self._blocks = blocks
        # The nodes that were loaded, and how many more keys may be. Change with each node.
        self._seen: set[Cid] = set()
        self._keys_left = _LOADED_KEYS_MAX

    def decode(self, cid: Cid, block: bytes) -> tuple[list[bytes], list[Cid], list[Cid | None]]:
        """Return what is in a node, as `decode_node` does. Raises ValueError, also above the limit of keys.

        `cid` is that of `block`. Each may be given once: a tree in which a node is twice is none.
        """
        if cid in self._seen:
            raise ValueError(f"the node {cid} is in the tree twice")
        self._seen.add(cid)
        decoded = decode_node(block)
        self._keys_left -= len(decoded[0])
        if self._keys_left < 0:
            raise ValueError(f"nodes with over {_LOADED_KEYS_MAX:,} keys")
        return decoded

    def subtrees(self, links: Iterable[Cid | None], layer: int) -> list[Subtree]:
        """Return the subtrees of a node, whose roots are in `layer`."""
        return [link if link is None else self.subtree(link, layer) for link in links]

    def subtree(self, cid: Cid, layer: int) -> Root:
        """Return a tree below the root; its CID, if its block is not there. Raises ValueError.

        A node without keys is right where a layer has none, if it has a subtree. Recurses once for each
        layer.
        """
        block = self._blocks.get(cid)
        if block is None:
            return cid
        keys, values, links = self.decode(cid, block)
        if layer < 0 or (keys and layer_of(keys[0]) != layer):
            raise ValueError(f"the node {cid} is in layer {layer} of the tree, where its keys are not")
        if not keys and links == [None]:
            raise ValueError(f"the node {cid} below the root is empty")
        return Node(layer, keys, values, self.subtrees(links, layer - 1), block, cid)
