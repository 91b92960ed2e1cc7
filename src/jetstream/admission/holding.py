"""Messages that are held while another source may bring what is before them. Pure.

A relay that has lost a message sends the one after it, which shows the break. Another source may have what
was lost, and send it a moment later.
"""

from __future__ import annotations

from collections.abc import Callable

from jetstream.admission.availability import Availability
from jetstream.admission.beginning import Beginning
from jetstream.admission.message import Message
from jetstream.admission.repo_queues import RepoQueues
from jetstream.limits import AdmissionLimits
from jetstream.verify.chain import Judgement, State
from jetstream.verify.commit import Before


class Holding:
    """All messages that are held. `clock` gives monotonic seconds.

    Methods that return messages have removed them: they are to be judged, in this order.
    """

    def __init__(
        self, sources: Availability, beginning: Beginning, limits: AdmissionLimits, clock: Callable[[], float]
    ) -> None:
        self._sources = sources
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

    def has_copy(self, message: Message) -> bool:
        """Return whether a copy of a message is held, which was examined although this one was not.

        A #sync is no copy of the commit of its rev: it has none of its ops.
        """
        copies = self._queues.items(message.did) if message.finding is None else ()
        place = (message.envelope.type, message.rev)
        return any(copy.finding is not None and (copy.envelope.type, copy.rev) == place for copy in copies)

    def is_due(self, message: Message, judgement: Judgement, state: State | None) -> bool:
        """Return whether a message that was judged is to be held: another source may have those before it."""
        if message.is_overdue or not self._is_one_missing(message, judgement, state):
            return False
        return self._sources.has_others(message.source, self._clock(), self._hold_s)

    def hold(self, message: Message) -> list[Message]:
        """Hold a message, among those of its repository by its rev. Return what is held no longer."""
        # A commit has its place before the #sync of its rev, which is a repeat of it.
        after = "~" if message.envelope.type == "sync" else ""
        return self._hold(message, message.rev + after)

    def hold_behind(self, message: Message) -> list[Message]:
        """Hold a message behind those of its repository that are held. Return what is held no longer."""
        return self._hold(message, "")

    def release(self, did: str) -> list[Message]:
        """Return the messages of a repository, since one was passed on.

        What does not follow yet is held again by the caller.
        """
        return self._queues.release(did)

    def take_due(self, most: int) -> list[Message]:
        """Return what was held for its time, about `most` messages, and what is behind them."""
        return self._overdue(self._queues.due(self._clock(), most))

    def next_due(self) -> float | None:
        """Return when `take_due` has something next, in seconds of the clock; None: nothing is held."""
        return self._queues.next_due()

    def _hold(self, message: Message, rev: str) -> list[Message]:
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
        return self._beginning.is_after(evidence.rev if evidence.before is Before.SYNC else evidence.since)
