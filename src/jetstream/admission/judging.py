"""The states of repositories as they are judged: those in the log, and those that are judged and not stored.

A message is judged against the newest state, so a state counts from the moment at which its message is passed
on. It is stored with the events of that message. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from jetstream.admission.examination import SIGNED_MODES, Finding, Mode
from jetstream.admission.waiting import bytes_of
from jetstream.atproto.compact_did import compact_did
from jetstream.identity.generations import Generations
from jetstream.upstream.envelope import Envelope
from jetstream.verify.chain import Judgement, State, judge, screen
from jetstream.verify.verdict import GAP, OK

# The messages that have a rev.
IN_REPOSITORIES: Final = frozenset({"commit", "sync"})
# What is above every rev, where a message is only compared with a state.
_ANY_REV: Final = "~"


@dataclass(slots=True, eq=False)
class Message:
    """One accepted message, from its arrival until it is stored or dropped."""

    source: str
    seq: int
    envelope: Envelope
    did: str
    # When it arrived here, in monotonic seconds.
    since: float
    # What it says by itself. None: it is no commit or #sync, or it must be examined yet.
    finding: Finding | None = None
    # Whether its key was asked for, and whether the earlier keys of its account were, after its signature did
    # not fit. It waits once for each.
    asked: bool = False
    retried: bool = False
    # Whether the PDS of its account was asked for.
    is_placed: bool = False
    # Whether it has waited for too long, or had no room: it is judged with what is known. And whether it was
    # the first of these.
    is_let_go: bool = False
    is_late: bool = False
    # When it was held first because messages before it are missing, in monotonic seconds; 0: it was not. And
    # whether that is over.
    held_since: float = 0.0
    is_overdue: bool = False
    # Whether its number is in the cursor as one that is not stored.
    is_marked: bool = False

    @property
    def rev(self) -> str:
        """The rev of a commit or #sync."""
        rev: str = self.envelope.fields["rev"]
        return rev

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return bytes_of(self.envelope.fields)


def did_of(envelope: Envelope) -> str:
    """Return the DID of a message without a `drop`."""
    did: str = envelope.fields["repo" if envelope.type == "commit" else "did"]
    return did


def is_deletion(body: bytes) -> bool:
    """Return whether an account event, by its body, says that the account was deleted."""
    fields: dict[str, Any] = orjson.loads(body)
    return fields["active"] is False and fields.get("status") == "deleted"


class States:
    """The state of every repository. `find` returns the packed state that the log has of a compact DID.

    `kept_max` is how many states are kept in memory, since that of a message is needed three times, and once
    for each copy of it.
    """

    def __init__(self, find: Callable[[bytes], bytes | None], kept_max: int) -> None:
        self._find = find
        # What is judged and not stored, by DID; None: the state is forgotten.
        self._judged: dict[str, State | None] = {}
        # What was used last, stored or not. No other part changes the states that the log has.
        self._kept: Generations[str, State] = Generations(kept_max)

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
        """Return whether a commit or #sync without a `drop` was judged before; None: there is no state."""
        state = self.get(did_of(envelope))
        if state is None:
            return None
        fields = envelope.fields
        return screen(state, fields["rev"], fields.get("blocks"), _ANY_REV) is not None

    def changes(self) -> dict[bytes, bytes | None]:
        """Return what must be stored, packed."""
        return {compact_did(did): state and state.packed() for did, state in self._judged.items()}

    def stored(self) -> None:
        """Note that the log has everything that `changes` has returned."""
        self._judged.clear()


@dataclass(frozen=True, slots=True)
class Rules:
    """How messages are judged. With `chained`, breaks in the chain of a repository are gaps."""

    mode: Mode
    chained: bool
    pass_unverified: bool

    @property
    def needs_keys(self) -> bool:
        """Whether a message must be signed."""
        return self.mode in SIGNED_MODES

    def lacks_key(self, finding: Finding) -> bool:
        """Return whether a message could not be verified because no key was at hand."""
        return self.needs_keys and finding.refused is None and finding.signed is None

    def judge(self, state: State | None, finding: Finding) -> Judgement:
        """Judge a message that was screened. It is passed on if the verdict says so (see `passes`)."""
        if finding.refused is not None:
            return Judgement(finding.refused, state)
        assert finding.evidence is not None
        judgement = judge(state, finding.evidence, signed=not self.lacks_key(finding))
        if self.chained or not judgement.missing_after:
            return judgement
        verdict = OK if judgement.verdict is GAP else judgement.verdict
        return Judgement(verdict, judgement.state)

    def passes(self, verdict_name: str) -> bool:
        """Return whether messages of a verdict are passed on."""
        if verdict_name == "unverified":
            return self.pass_unverified
        return verdict_name not in {"replay", "refused"}
