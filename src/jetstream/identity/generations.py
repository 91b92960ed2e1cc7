"""A bounded mapping that forgets what was not used for long. Pure.

Two dictionaries: the *young* one, and the *old* one, which is what the young one was when it was full. What
is used moves to the young one, and the old one is dropped as a whole. So nothing is done for an entry that is
young, and an entry costs no links, as those of an `OrderedDict` do.

    put, or get of an old one ──▶ young ── full ──▶ old ── the next one is full ──▶ dropped
"""

from __future__ import annotations

from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Generations(Generic[Key, Value]):
    """Holds at most `entries_max` entries; the `entries_max` / 2 that were used last are among them.

    No value is None. `in` and `len` are no use of an entry. A key is never in both generations.
    """

    __slots__ = ("_half", "_old", "_young")

    def __init__(self, entries_max: int) -> None:
        self._half = max(1, entries_max // 2)  # the size at which the young generation becomes the old one
        self._young: dict[Key, Value] = {}  # what was used since then
        self._old: dict[Key, Value] = {}  # what was used before, and not since

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def __contains__(self, key: Key) -> bool:
        return key in self._young or key in self._old

    def get(self, key: Key) -> Value | None:
        """Return the value of a key, and note its use. None: it is not there, or was forgotten."""
        value = self._young.get(key)
        if value is None and (value := self._old.get(key)) is not None:
            self.put(key, value)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Set the value of a key, which is a use of it. What was not used for long may be dropped by that."""
        self._old.pop(key, None)
        self._young[key] = value
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}

    def pop(self, key: Key) -> None:
        """Forget a key. Does nothing for one that is not there."""
        self._young.pop(key, None)
        self._old.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._young, self._old = {}, {}
