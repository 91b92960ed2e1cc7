"""Accounts that readers were told are deleted, while other sources still send what came before. Pure.

After the `#account` of a deletion, a repository may begin again at any rev. So its state is forgotten, and
nothing tells any more that a message was passed on. But a source that is behind has not said so yet: its next
messages are those from before the deletion, which readers must not get again. So the state is kept until all
sources that speak for the account have said that it is deleted. Meanwhile,

    a source that has said so    is judged as if there was no state
    any other                    is judged by the state
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection


class _Deletion:
    """One account: who has said that it is deleted, and whether readers were told."""

    __slots__ = ("said", "told")

    def __init__(self) -> None:
        self.said: set[str] = set()
        self.told = False


class Deletions:
    """The accounts of which some sources have said so, `entries_max` at most: the oldest is forgotten first.

    The state of one that is forgotten stays, and its next message is a gap at worst.
    """

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        # By DID, in the order in which somebody said it first.
        self._deletions: OrderedDict[str, _Deletion] = OrderedDict()

    def __len__(self) -> int:
        return len(self._deletions)

    def note(self, did: str, source: str, sources: Collection[str], *, told: bool) -> bool:
        """Note that a source says an account is deleted; return whether its state is to be forgotten.

        `sources` are those that speak for the account. `told` is whether readers are told now.
        """
        deletion = self._deletions.setdefault(did, _Deletion())
        deletion.said.add(source)
        deletion.told |= told
        if deletion.told and deletion.said.issuperset(sources):
            del self._deletions[did]
            return True
        if len(self._deletions) > self._entries_max:
            self._deletions.popitem(last=False)
        return False

    def is_over(self, did: str, source: str) -> bool:
        """Return whether a message of this source is from after the deletion."""
        deletion = self._deletions.get(did)
        return deletion is not None and deletion.told and source in deletion.said

    def begins_again(self, did: str) -> None:
        """Note that a message from after the deletion was passed on: the account has a new state."""
        self._deletions.pop(did, None)
