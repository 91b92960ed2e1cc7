"""The states of repositories as they are judged: those in the log, and those that are judged and not stored.

A message is judged against the newest state, so a state counts from the moment at which its message is passed
on. It is stored with the events of that message. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from jetstream.admission.message import did_of
from jetstream.atproto.compact_did import compact_did
from jetstream.identity.generations import Generations
from jetstream.upstream.envelope import Envelope
from jetstream.verify.chain import State, screen

# What is above every rev, where a message is only compared with a state.
_ANY_REV: Final = "~"


class States:
    """The state of every repository. `find` returns the packed state that the log has of a compact DID.

    `is_at_hand` tells whether it can be asked for that of one; without it, it always can. `kept_max` is
    how many states are kept in memory, since that of a message is needed three times, and once for each
    copy of it. With a log in a database, `find` raises LogError for a state that is not at hand.
    """

    def __init__(
        self,
        find: Callable[[bytes], bytes | None],
        kept_max: int,
        is_at_hand: Callable[[bytes], bool] | None = None,
    ) -> None:
        # Both ask the log.
        self._find = find
        self._is_at_hand = is_at_hand
        # What is judged and not stored, by DID; None: the state is forgotten. Set by `put`, cleared by
        # `stored`: nothing is judged between `changes` and `stored`, so none is lost.
        self._judged: dict[str, State | None] = {}
        # What was used last, stored or not. No other part changes the states that the log has.
        self._kept: Generations[str, State] = Generations(kept_max)

    def has(self, did: str) -> bool:
        """Tell whether `get` can be asked for the state of a repository."""
        if self._is_at_hand is None or did in self._kept or did in self._judged:
            return True
        return self._is_at_hand(compact_did(did))

    def get(self, did: str) -> State | None:
        """Return the state of a repository; None if nothing of it was passed on."""
        state = self._kept.get(did)
        if state is not None:
            return state
        if did in self._judged:
            return self._judged[did]
        packed = self._find(compact_did(did))
        if packed is None:
            return None
        state = State.unpacked(packed)
        self._kept.put(did, state)
        return state

    def put(self, did: str, state: State | None) -> None:
        """Set the state of a repository; None: forget it."""
        self._judged[did] = state
        if state is None:
            self._kept.pop(did)
        else:
            self._kept.put(did, state)

    def knows(self, envelope: Envelope) -> bool | None:
        """Return whether a commit or #sync without a `drop` was judged before.

        None: there is no state, or it is not at hand.
        """
        did = did_of(envelope)
        state = self.get(did) if self.has(did) else None
        if state is None:
            return None
        fields, is_sync = envelope.fields, envelope.type == "sync"
        return screen(state, fields["rev"], fields.get("blocks"), _ANY_REV, is_sync=is_sync) is not None

    def changes(self) -> dict[bytes, bytes | None]:
        """Return what must be stored, packed."""
        return {compact_did(did): state and state.packed() for did, state in self._judged.items()}

    def stored(self) -> None:
        """Note that the log has everything that `changes` has returned."""
        self._judged.clear()
