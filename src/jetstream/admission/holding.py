"""Messages that are held while another source may bring something better. Pure.

Relays lose messages, and may take the proof of a commit away. What is held, and until when, `hold_s` at most:

    messages before it are missing: its source   another source has brought them
    has lost them
    it does not prove its ops: its source may    another source has brought it with a proof, or all others
    have taken the proof away                    have brought it without one
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from jetstream.admission.availability import Availability
from jetstream.admission.beginning import Beginning
from jetstream.admission.message import Message
from jetstream.admission.repo_queues import RepoQueues
from jetstream.limits import AdmissionLimits
from jetstream.verify.chain import Judgement, State
from jetstream.verify.commit import Before

# What is examined of a commit, beside its repository and its rev.
_EXAMINED: Final = ("blocks", "commit", "ops", "prevData", "since")


class Holding:
    """All messages that are held. `clock` gives monotonic seconds.

    Methods that return messages have removed them: they are to be judged, in this order. The caller has
    examined each message before it is held, but for those of `hold_behind`. `unstored_max`,
    `held_per_repo` and `held_bytes_max` limit what is held: what is above them is let go, and judged at
    once (`repo_queues`).
    """

    def __init__(
        self,
        sources: Availability,
        speakers: Callable[[str], Collection[str]],
        beginning: Beginning,
        limits: AdmissionLimits,
        clock: Callable[[], float],
    ) -> None:
        # Which sources have a connection, or had one lately.
        self._sources = sources
        # Returns the sources that speak for an account.
        self._speakers = speakers
        # From which rev on messages were read: of a repository without a state, nothing else tells what
        # is missing.
        self._beginning = beginning
        # Seconds for which a message is held at most, and a source without a connection may get one again.
        self._hold_s = limits.hold_s
        self._clock = clock
        self._queues = RepoQueues[Message](
            limits.hold_s, limits.held_per_repo, limits.unstored_max, limits.held_bytes_max
        )

    def __len__(self) -> int:
        """Return how many messages are held."""
        return len(self._queues)

    def __contains__(self, did: str) -> bool:
        """Return whether messages of a repository are held."""
        return did in self._queues

    def messages(self, did: str) -> list[Message]:
        """Return the messages of a repository that are held."""
        return self._queues.items(did)

    def copy_of(self, message: Message) -> Message | None:
        """Return a message that is held and was examined, and of which this one is a copy that was not.

        None: there is none, or this one may have the proof that the other lacks. A #sync is no copy of the
        commit of its rev: it has none of its ops.
        """
        copies = self._copies(message) if message.finding is None else ()
        return next((each for each in copies if not _is_unproven(each) or _are_equal(each, message)), None)

    def note_copy(self, copy: Message, source: str) -> list[Message]:
        """Note which source has brought a copy of a message that is held.

        Return the messages of its repository if they were held for its proof, and nobody is left to bring it.
        """
        if not _is_unproven(copy):
            return []
        copy.also_from += (source,)
        return [] if self._may_be_proven(copy) else self.release(copy.did)

    def is_due(self, message: Message, judgement: Judgement, state: State | None) -> bool:
        """Return whether a message that was judged is to be held.

        `judgement` is what it would come to now, and `state` what it was compared with. One that was held
        for its time is not held again.
        """
        if message.is_overdue:
            return False
        if self._is_one_missing(message, judgement, state):
            return self._sources.has_others(message.source, self._clock(), self._hold_s)
        passes = judgement.state is not state
        return passes and _is_unproven(message) and self._may_be_proven(message)

    def hold(self, message: Message) -> list[Message]:
        """Hold a message, among those of its repository by its rev. Return what is held no longer."""
        # A commit has its place before the #sync of its rev, which is a repeat of it.
        after = "~" if message.envelope.type == "sync" else ""
        return self._hold(message, message.rev + after)

    def hold_behind(self, message: Message) -> list[Message]:
        """Hold a message behind those of its repository that are held. Return what is held no longer."""
        return self._hold(message, "")

    def release(self, did: str) -> list[Message]:
        """Return the messages of a repository, since one was passed on: those behind it may follow it now.

        What does not follow yet is held again by the caller, for what is left of its time.
        """
        return self._queues.release(did)

    def take_due(self, most: int) -> list[Message]:
        """Return what was held for its time, about `most` messages, and what is behind them."""
        return self._overdue(self._queues.due(self._clock(), most))

    def next_due(self) -> float | None:
        """Return when `take_due` has something next, in seconds of the clock; None: nothing is held."""
        return self._queues.next_due()

    def _hold(self, message: Message, rev: str) -> list[Message]:
        """Hold a message at the place of a rev; empty: behind all. Return what is held no longer."""
        message.held_since = message.held_since or self._clock()
        let_go = self._queues.hold(message.did, message, message.size, message.held_since, rev)
        return self._overdue(let_go)

    def _overdue(self, let_go: list[tuple[str, Message]]) -> list[Message]:
        """Return messages that are held no longer, and then those behind them."""
        for _, message in let_go:
            message.is_overdue = True
        # Else the first that passes would release these, before the others are judged.
        behind = [each for did in dict.fromkeys(did for did, _ in let_go) for each in self.release(did)]
        return [*(message for _, message in let_go), *behind]

    def _copies(self, message: Message) -> list[Message]:
        """Return what is held and examined of the type, the repository and the rev of a message."""
        place = (message.envelope.type, message.rev)
        held = self._queues.items(message.did)
        return [each for each in held if each.finding and (each.envelope.type, each.rev) == place]

    def _may_be_proven(self, message: Message) -> bool:
        """Return whether there is a source that may bring a message with a proof, and has not brought it."""
        copies = (message, *self._copies(message))
        brought = {source for each in copies for source in (each.source, *each.also_from)}
        others = [name for name in self._speakers(message.did) if name not in brought]
        return self._sources.has_any(others, self._clock(), self._hold_s)

    def _is_one_missing(self, message: Message, judgement: Judgement, state: State | None) -> bool:
        """Return whether a message that is to be passed on shows that one before it has not come."""
        if judgement.missing_after or judgement.state is state:
            return bool(judgement.missing_after)
        finding = message.finding
        assert finding is not None
        evidence = finding.evidence
        if state is not None or evidence is None:
            return False
        # Of a #sync, the commit of its own rev should have come.
        before = evidence.rev if evidence.before is Before.SYNC else evidence.since
        return self._beginning.is_after(before, evidence.rev)


def _is_unproven(message: Message) -> bool:
    """Return whether a message is signed and does not prove its ops, as far as it was examined.

    One without a key at hand is not among them: another source would not bring the key.
    """
    finding = message.finding
    if finding is None or finding.evidence is None:
        return False
    return bool(finding.signed) and finding.evidence.is_unproven


def _are_equal(one: Message, other: Message) -> bool:
    """Return whether two commits of one repository and rev say the same.

    Those that are nested too deeply to be compared count as different: each is judged by itself.
    """
    try:
        return all(one.envelope.fields.get(name) == other.envelope.fields.get(name) for name in _EXAMINED)
    except RecursionError:
        return False
