"""The verdicts that a consumer must give that verifies everything, on each commit and sync of one stream.

It remembers for each repository the revision and the tree of the last commit that it accepted, and compares
the next one with them:

- `ok`: the commit is authentic and follows the last one, or is the first one of its repository;
- `gap`: it is authentic, but does not follow; it is accepted all the same;
- `legacy`: it has no `prevData`; `incomplete`: it lacks a node to undo its operations; both are accepted;
- `replay`: its revision is not above the last one;
- `refused`: it is not authentic, or damaged. It changes nothing, so the next commit has the verdict `gap`.

A consumer may name the reasons for a refusal in its own words: `car`, `hash`, `record`, `proof`, `signature`,
`future_rev`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from jetstream.atproto.cid import Cid
from jetstream.simulator.forged import data_of
from jetstream.simulator.frames import Account, Commit, Message, Sync


class Verdict(NamedTuple):
    """What a consumer says of a message, and why it refuses it."""

    name: str
    reason: str | None = None


OK: Final = Verdict("ok")
GAP: Final = Verdict("gap")
REPLAY: Final = Verdict("replay")
# Of forged commits that are not accepted.
_REJECTED: Final = {
    "bad_signature": Verdict("refused", "signature"),
    "high_s": Verdict("refused", "signature"),
    "broken_chain": Verdict("refused", "proof"),
    "future_rev": Verdict("refused", "future_rev"),
    "rev_back": REPLAY,
}
# Of forged commits that are accepted. They are made only where the commit follows.
_ACCEPTED: Final = {"no_prev_data": Verdict("legacy"), "missing_node": Verdict("incomplete")}


class _State(NamedTuple):
    rev: str
    data: Cid  # the root of the tree


class Consumer:
    """The consumer: what it knows of each repository after what the stream has sent."""

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}  # by DID, of its last accepted commit

    def follows(self, message: Message) -> bool:
        """Return whether a message is a commit that follows the last one of its repository."""
        if not isinstance(message, Commit):
            return False
        revision = message.revision
        return self._states.get(message.did) == (revision.since, revision.prev_data)

    def judge(self, message: Message, forged: str = "") -> Verdict | None:
        """Return the verdict on a message; None if it has none. `forged` is the fault of a forged commit."""
        if forged in _REJECTED:
            return _REJECTED[forged]
        match message:
            case Commit(did, _, revision):
                verdict = _ACCEPTED.get(forged) or self._commit(message)
                self._states[did] = _State(revision.rev, data_of(revision.commit.data))
                return verdict
            case Sync():
                return self._sync(message)
            case Account(did, _, _, "deleted"):
                self._states.pop(did, None)
        return None

    def _commit(self, message: Commit) -> Verdict:
        return OK if self.follows(message) or message.did not in self._states else GAP

    def _sync(self, message: Sync) -> Verdict:
        last, data = self._states.get(message.did), data_of(message.commit.data)
        if last is not None and message.rev <= last.rev:
            return REPLAY
        self._states[message.did] = _State(message.rev, data)
        return OK if last is None or last.data == data else GAP
