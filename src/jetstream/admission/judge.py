"""Judges messages in order of their arrival, and lets those step aside that must wait.

    take ─▶ screened by rev ─▶ examined and signed? ─▶ compared with the state ─▶ passed on, refused, dropped
                                    │ no                      │ one before it is missing, or its proof
                                    ▼                         ▼
                                Suspended                  held

Nothing here waits: `Admission` calls it whenever something may go on, and stores its `output`.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from jetstream.admission.accounts import Difference
from jetstream.admission.beginning import Beginning
from jetstream.admission.examiners.examination import Finding
from jetstream.admission.holding import Holding
from jetstream.admission.hosting import Hosting
from jetstream.admission.marks import Marks
from jetstream.admission.message import IN_REPOSITORIES, Message, did_of
from jetstream.admission.output import Found, Output
from jetstream.admission.parts import Parts
from jetstream.admission.repo_queues import RepoQueues
from jetstream.admission.reports import Reports
from jetstream.admission.rules import Rules
from jetstream.admission.signatures import Signatures
from jetstream.admission.states import States
from jetstream.admission.suspended import Suspended
from jetstream.admission.unsigned import Unsigned
from jetstream.limits import Limits
from jetstream.model.event import Key
from jetstream.upstream.envelope import Envelope
from jetstream.upstream.extract import possible_keys, sync_of
from jetstream.verify.chain import Judgement, State, latest_rev, screen
from jetstream.verify.verdict import REPLAY, Verdict, crashed

# What code raises for a value that it was not made for. Any other error, such as one of the log, is not of
# one message: it ends the server, since no message may be dropped for it.
_FAULTS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class Judge:
    """The one judge of all sources. `wake` is set when a message that waited may go on.

    It is called by one task only, in turns: `begin`, then `take_due`, `take_ready`, `judge_in_hand` and
    `take`, in the order of `Admission._judge_some`. What it has decided is in `output`, `states`, `marks`
    and `account_changes`, until the caller stores that. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        rules: Rules,
        parts: Parts,
        wake: asyncio.Event,
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        bounds = limits.admission
        # By what settings messages are judged, and which verdicts pass.
        self._rules = rules
        # How far back reading began: from which rev on a missing message counts as one.
        self._beginning = Beginning(int(bounds.hold_s * 1e6))
        # What sources have said of accounts, and which source decides for each.
        self._accounts = parts.accounts
        # Accounts that are deleted, while sources are behind.
        self._deletions = parts.deletions
        self._clock = clock
        # The newest state of each repository.
        at_hand = None if parts.ahead is None else parts.ahead.has_repo
        self.states = States(parts.log.repo, bounds.states_kept, at_hand)
        # Which numbers of the sources are not stored.
        self.marks = Marks()
        # Which accounts a source may speak for.
        self.hosting = Hosting(rules, parts.keys)
        # What messages lack until they can be judged. It also brings the keys for their first examination.
        self.signatures = Signatures(rules, self.states, self.hosting, parts.examine, parts.keys, limits)
        # What was judged since the last append. Replaced by `Admission` when it stores it.
        self.output = Output()
        # What is logged of refusals, and the conditions.
        self.reports = Reports(parts.conditions, bounds, clock, pass_unverified=rules.pass_unverified)
        waiting = RepoQueues[Message](
            bounds.key_wait_s, bounds.waiting_per_repo, bounds.unstored_max, bounds.waiting_bytes_max
        )
        # Messages that lack something, and those behind them.
        self._suspended = Suspended(waiting, wake.set)
        # Those that waited and are to be judged, or are being judged. Set by `take_due` and `take_ready`,
        # cleared by `judge_in_hand`.
        self.in_hand: list[Message] = []
        # Messages that are held until another source brings those before them, or a proof.
        self._held = Holding(parts.accounts.sources, self.hosting.speakers, self._beginning, bounds, clock)
        # Those of other kinds.
        self._unsigned = Unsigned(parts, self.states, self.hosting)
        # The time, in unix microseconds, and the highest rev that is acceptable then. Both are of the
        # last `begin`.
        self._now_us = 0
        self._latest = ""

    def __len__(self) -> int:
        """Return how many messages wait."""
        return len(self._suspended) + len(self._held)

    def account_changes(self) -> Mapping[tuple[str, str], bytes | None]:
        """Return what has become known of accounts since the last call, to be stored."""
        return self._accounts.changes()

    def close(self) -> None:
        """End all waiting: the tasks that fetch keys or examine are cancelled, and nothing more is judged."""
        self._suspended.close()

    def begin(self, now_us: int) -> None:
        """Begin a turn of judging, at a time in unix microseconds, which holds until the next `begin`."""
        self._now_us = now_us
        self._latest = latest_rev(now_us)

    def take(self, message: Message) -> None:
        """Judge a message that has arrived, or let it wait.

        An error of our own code, on what nobody has foreseen, costs this message only.
        """
        try:
            if message.did in self._suspended:
                self._mark(message)
                self._suspended.add(message)
            else:
                self._decide(message)
        except _FAULTS as error:
            self._fail(message, crashed(error))

    @property
    def has_ready(self) -> bool:
        """Whether there is something for `take_ready`."""
        return self._suspended.has_ready

    def take_ready(self) -> None:
        """Take in hand the messages of one repository whose first one is ready."""
        self.in_hand = self._suspended.take_ready()

    def judge_in_hand(self) -> Iterator[None]:
        """Judge what was taken in hand, one message in each step.

        There may be a thousand, each with a signature to check.
        """
        for message in self.in_hand:
            self.take(message)  # the first that must wait again has the others wait behind it
            yield
        self.in_hand = []

    def knows(self, envelope: Envelope) -> bool | None:
        """Return whether a commit or #sync was judged before; None: the state alone cannot tell."""
        return None if did_of(envelope) in self._deletions else self.states.knows(envelope)

    def take_due(self, most: int) -> None:
        """Take in hand what was held long enough, and let what lacks something be ready, `most` of each."""
        self._suspended.end_due(self._clock(), most)
        self.in_hand = self._held.take_due(most)

    def changed_accounts(self, accounts_max: int) -> list[Difference]:
        """Return what readers must be told since another source decides of accounts: for `tell_accounts`."""
        return self._accounts.differences(accounts_max, self._now_us)

    def tell_accounts(self, differences: Sequence[Difference]) -> None:
        """Pass on what readers must be told of accounts."""
        self._unsigned.tell_accounts(differences, self.output, self._now_us)

    def waiting_among(self, keys: Collection[Key]) -> set[Key]:
        """Return those of some keys that are of messages that wait, or are judged and not stored.

        What is in the queue (`InputQueue`) is not among them: the caller waits for that first.
        """
        revs: defaultdict[bytes, set[bytes]] = defaultdict(set)
        for did, *_, rev in keys:
            revs[did].add(rev)
        waiting = {
            key for did, its_revs in revs.items() for key in self._waiting_keys(did.decode(), its_revs)
        }
        waiting.update(event.key for event in self.output.events)
        return waiting.intersection(keys)

    def _waiting_keys(self, did: str, revs: Container[bytes]) -> Iterator[Key]:
        """Yield the keys of what waits of a repository, of its commits those at some revs."""
        in_hand = (message for message in self.in_hand if message.did == did)
        for message in (*in_hand, *self._suspended.messages(did), *self._held.messages(did)):
            # The key of a record has the rev of its commit, so commits of other revs need not be looked
            # at.
            if message.envelope.type != "commit" or message.rev.encode() in revs:
                yield from possible_keys(message.envelope)

    def next_due(self) -> float | None:
        """Return when `take_due` has something next, in seconds of the clock; None: nothing waits."""
        times = (self._suspended.next_due(), self._held.next_due())
        return min((each for each in times if each is not None), default=None)

    def _decide(self, message: Message) -> None:
        """Judge a message, or let it wait.

        In this order: may its source speak for the account, then the rules of its type. Signed messages
        are judged by the state of their repository, all others by what sources have said.
        """
        if (waiting := self.hosting.missing(message)) is not None:
            self._suspend(message, waiting)
        elif not self.hosting.accepts(message):
            self.output.drops[message.source, "host"] += 1
            self._done(message)
        elif message.envelope.type in IN_REPOSITORIES:
            self._decide_signed(message)
        elif message.did in self._held and not message.is_overdue:
            self._mark(message)  # what came before an account's change stays before it
            self._take_all(self._held.hold_behind(message))
        else:
            self._unsigned.judge(message, self.output, self._now_us)
            self._done(message)

    def _suspend(self, message: Message, waiting: Coroutine[Any, Any, Finding | None]) -> None:
        """Let a message wait for `waiting`, and with it its repository. It is in the cursor as not stored."""
        self._mark(message)
        self._suspended.begin(message, waiting)

    def _decide_signed(self, message: Message) -> None:
        """Judge a commit or #sync, or let it wait.

        What costs the least comes first. A repeat is known by its rev alone. A copy of a message that is
        held needs no examination. Only what is left is examined and needs a key, and is then compared
        with the state.
        """
        state = self._state_for(message)
        blocks = message.envelope.fields.get("blocks")
        is_sync = message.envelope.type == "sync"
        verdict = screen(state, message.rev, blocks, self._latest, is_sync=is_sync)
        if verdict is None and self._is_deleted(message, state):
            verdict = REPLAY
        if verdict is not None:
            self._end(message, Judgement(verdict, state))
        elif (copy := self._held.copy_of(message)) is not None:
            self._end(message, Judgement(REPLAY, state))
            self._take_all(self._held.note_copy(copy, message.source))
        elif (waiting := self.signatures.missing(message)) is not None:
            self._suspend(message, waiting)
        else:
            assert message.finding is not None
            judgement = self._rules.judge(state, message.finding)
            if not self._hold(message, judgement, state):
                self._end(message, judgement)

    def _state_for(self, message: Message) -> State | None:
        """Return the state that a message is compared with."""
        is_over = self._deletions.is_over(message.did, message.source)
        return None if is_over else self.states.get(message.did)

    def _is_deleted(self, message: Message, state: State | None) -> bool:
        """Return whether a message is from before the deletion of its account, which has no state now."""
        if state is not None:
            return False
        return self._deletions.is_from_before(message.did, message.rev, begins=message.begins)

    def _hold(self, message: Message, judgement: Judgement, state: State | None) -> bool:
        """Hold a message while another source may bring what is before it; return whether it is held."""
        if not self._held.is_due(message, judgement, state):
            return False
        self._mark(message)
        self._take_all(self._held.hold(message))
        return True

    def _take_all(self, messages: Iterable[Message]) -> None:
        """Judge messages that are held no longer, in their order. Some of them may be held again."""
        for message in messages:
            self.take(message)

    def _end(self, message: Message, judgement: Judgement) -> None:
        """Count the verdict of a message, and pass it on, or drop it.

        One that passes may be what others of its repository were held for, so those are judged after it.
        """
        verdict = judgement.verdict
        passes = self._rules.passes(verdict.name)
        if passes:
            self._pass(message, judgement)
        self._count(message, verdict)
        self._done(message)
        if passes:
            self._take_all(self._held.release(message.did))

    def _fail(self, message: Message, verdict: Verdict) -> None:
        """Drop a message on which our own code has made an error. Its repository stays as it was."""
        if message.envelope.type in IN_REPOSITORIES:
            self._count(message, verdict)
        else:
            self.output.drops[message.source, "unforeseen"] += 1
            self.reports.refused(message, verdict)
        self._done(message)

    def _count(self, message: Message, verdict: Verdict) -> None:
        """Count the verdict of a commit or #sync, and report a refusal."""
        self.output.verdicts[verdict.name, verdict.reason] += 1
        if verdict.name == "refused":
            self.reports.refused(message, verdict)

    def _pass(self, message: Message, judgement: Judgement) -> None:
        """Add the events of a message to the output, with the gap that it shows, and set the state.

        What may raise for what the message holds comes first, so nothing is done by halves (`_fail`).
        Before the events of a commit after a gap comes a #sync of the same commit: it tells readers to
        fetch the repository.
        """
        finding, output = message.finding, self.output
        assert finding is not None
        if judgement.missing_after:
            cause = message.envelope.type
            sync = sync_of(message.envelope) if cause == "commit" else None
            gap = Found(len(output.events), message.did, judgement.missing_after, message.rev, cause)
            output.gaps.append(gap)
            if sync is not None:
                output.events.append(sync)
        output.add(message.source, finding.events, finding.drops)
        self.states.put(message.did, judgement.state)
        self._beginning.note(message.rev)
        if self._deletions.is_over(message.did, message.source):
            self._deletions.begins_again(message.did)

    def _mark(self, message: Message) -> None:
        """Let the cursor say that a message is not stored."""
        if not message.is_marked:
            message.is_marked = True
            self.marks.wait(message.source, message.seq)

    def _done(self, message: Message) -> None:
        """Note that a message is dropped, or is stored with the next append."""
        if message.is_marked:
            message.is_marked = False
            self.marks.settle(message.source, message.seq)
        self.signatures.done(message)
