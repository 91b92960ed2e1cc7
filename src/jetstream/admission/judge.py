"""Judges messages in order of their arrival, and lets those step aside that must wait.

    take ─▶ screened by rev ─▶ examined and signed? ─▶ compared with the state ─▶ passed on, refused, dropped
                                    │ no                      │ messages before it are missing
                                    ▼                         ▼
                                Suspended                  held

Nothing here waits: `Admission` calls it whenever something may go on, and stores its `output`.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from jetstream.admission.beginning import Beginning
from jetstream.admission.examiners.examination import Finding
from jetstream.admission.hosting import Hosting
from jetstream.admission.marks import Marks
from jetstream.admission.message import IN_REPOSITORIES, Message, did_of, is_deletion
from jetstream.admission.output import Found, Output
from jetstream.admission.parts import Parts
from jetstream.admission.repo_queues import RepoQueues
from jetstream.admission.reports import Reports
from jetstream.admission.rules import Rules
from jetstream.admission.signatures import Signatures
from jetstream.admission.states import States
from jetstream.admission.suspended import Suspended
from jetstream.limits import Limits
from jetstream.model.event import ACCOUNT, Event, Key
from jetstream.upstream.envelope import Envelope
from jetstream.upstream.extract import extract, possible_keys, sync_of
from jetstream.verify.chain import Judgement, State, latest_rev, screen
from jetstream.verify.commit import Before
from jetstream.verify.verdict import REPLAY


class Judge:
    """The one judge of all sources. `wake` is set when a message that waited may go on."""

    def __init__(
        self,
        rules: Rules,
        parts: Parts,
        wake: asyncio.Event,
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        bounds = limits.admission
        self._rules = rules
        self._beginning = Beginning()
        # Seconds for which a message is held at most, and a source without a connection may get one again.
        self._hold_s = bounds.hold_s
        self._accounts = parts.accounts
        # Accounts that are deleted, while sources are behind.
        self._deletions = parts.deletions
        self._clock = clock
        # The newest state of each repository.
        self.states = States(parts.log.repo, bounds.states_kept)
        # Which numbers of the sources are not stored.
        self.marks = Marks()
        # What messages lack until they can be judged. It also brings the keys for their first examination.
        self.signatures = Signatures(rules, self.states, parts.examine, parts.keys, limits)
        # Which accounts a source may speak for.
        self.hosting = Hosting(rules, parts.keys)
        # What was judged since the last append.
        self.output = Output()
        self.reports = Reports(parts.conditions, bounds, clock, pass_unverified=rules.pass_unverified)
        most = bounds.unstored_max
        waiting = RepoQueues[Message](
            bounds.key_wait_s, bounds.waiting_per_repo, most, bounds.waiting_bytes_max
        )
        # Messages that lack something, and those behind them.
        self._suspended = Suspended(waiting, wake.set)
        # Those that waited and are being judged. Set and cleared by `take_ready`.
        self._in_hand: list[Message] = []
        # Messages that are held since those before them are missing.
        self._held = RepoQueues[Message](bounds.hold_s, bounds.held_per_repo, most, bounds.held_bytes_max)
        # Those that were passed on a short time ago.
        self._identities = parts.identities
        # The time, in unix microseconds, and the highest rev that is acceptable then.
        self._now_us = 0
        self._latest = ""

    def __len__(self) -> int:
        """Return how many messages wait."""
        return len(self._suspended) + len(self._held)

    def account_changes(self) -> Mapping[tuple[str, str], bytes | None]:
        """Return what has become known of accounts since the last call, to be stored."""
        return self._accounts.changes()

    def close(self) -> None:
        """End all waiting."""
        self._suspended.close()

    def begin(self, now_us: int) -> None:
        """Begin to judge, at a time in unix microseconds."""
        self._now_us = now_us
        self._latest = latest_rev(now_us)

    def take(self, message: Message) -> None:
        """Judge a message that has arrived, or let it wait."""
        if message.did in self._suspended:
            self._mark(message)
            self._suspended.add(message)
        else:
            self._decide(message)

    @property
    def has_ready(self) -> bool:
        """Whether `take_ready` has something to do."""
        return self._suspended.has_ready

    def take_ready(self) -> Iterator[None]:
        """Judge the messages of one repository whose first one is ready, one in each step.

        There may be a thousand, each with a signature to check.
        """
        self._in_hand = self._suspended.take_ready()
        for message in self._in_hand:
            self.take(message)  # the first that must wait again has the others wait behind it
            yield
        self._in_hand = []

    def knows(self, envelope: Envelope) -> bool | None:
        """Return whether a commit or #sync was judged before; None: the state alone cannot tell."""
        return None if did_of(envelope) in self._deletions else self.states.knows(envelope)

    def take_due(self, most: int) -> None:
        """Judge what has waited for long enough, about `most` messages of either kind."""
        now = self._clock()
        self._suspended.end_due(now, most)
        self._take_overdue(self._held.due(now, most))

    def tell_accounts(self, accounts_max: int) -> None:
        """Pass on what readers must be told of accounts because another source decides."""
        for source, did, body in self._accounts.differences(accounts_max, self._now_us):
            event = Event(ACCOUNT, did.encode(), b"", b"", b"", b"", body)
            self._pass_account(source, did, event, ())

    def waiting_among(self, keys: Collection[Key]) -> set[Key]:
        """Return those of some keys that are of messages that wait, or are judged and not stored."""
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
        in_hand = (message for message in self._in_hand if message.did == did)
        for message in (*in_hand, *self._suspended.messages(did), *self._held.items(did)):
            if message.envelope.type != "commit" or message.rev.encode() in revs:
                yield from possible_keys(message.envelope)

    def next_due(self) -> float | None:
        """Return when `take_due` has something next, in seconds of the clock; None: nothing waits."""
        times = (self._suspended.next_due(), self._held.next_due())
        return min((each for each in times if each is not None), default=None)

    def _decide(self, message: Message) -> None:
        """Judge a message, or let it wait."""
        if (waiting := self.hosting.missing(message)) is not None:
            self._suspend(message, waiting)
        elif not self.hosting.accepts(message):
            self.output.drops[message.source, "host"] += 1
            self._done(message)
        elif message.envelope.type in IN_REPOSITORIES:
            self._decide_signed(message)
        elif message.did in self._held and not message.is_overdue:
            self._hold_behind(message, "")  # what came before an account's change stays before it
        else:
            self._decide_unsigned(message)
            self._done(message)

    def _suspend(self, message: Message, waiting: Coroutine[Any, Any, Finding | None]) -> None:
        self._mark(message)
        self._suspended.begin(message, waiting)

    def _decide_signed(self, message: Message) -> None:
        state = self._state_for(message)
        blocks = message.envelope.fields.get("blocks")
        is_sync = message.envelope.type == "sync"
        verdict = screen(state, message.rev, blocks, self._latest, is_sync=is_sync)
        if verdict is None and (self._is_held(message) or (state is None and self._is_deleted(message))):
            verdict = REPLAY
        if verdict is not None:
            self._end(message, Judgement(verdict, state))
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

    def _is_deleted(self, message: Message) -> bool:
        """Return whether a message is from before the deletion of its account."""
        return self._deletions.is_from_before(message.did, message.rev, begins=message.begins)

    def _is_held(self, message: Message) -> bool:
        """Return whether a copy of a message is held, which was examined although this one was not.

        A #sync is no copy of the commit of its rev: it has none of its ops.
        """
        copies = self._held.items(message.did) if message.finding is None else ()
        place = (message.envelope.type, message.rev)
        return any(copy.finding is not None and (copy.envelope.type, copy.rev) == place for copy in copies)

    def _hold(self, message: Message, judgement: Judgement, state: State | None) -> bool:
        """Hold a message while another source may have those before it; return whether it is held."""
        if message.is_overdue or not self._is_one_missing(message, judgement, state):
            return False
        if not self._accounts.sources.has_others(message.source, self._clock(), self._hold_s):
            return False
        # A commit has its place before the #sync of its rev, which is a repeat of it.
        after = "~" if message.envelope.type == "sync" else ""
        self._hold_behind(message, message.rev + after)
        return True

    def _hold_behind(self, message: Message, rev: str) -> None:
        """Hold a message behind those of its repository that are held, or among them by its rev."""
        self._mark(message)
        message.held_since = message.held_since or self._clock()
        self._take_overdue(self._held.hold(message.did, message, message.size, message.held_since, rev))

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

    def _take_overdue(self, messages: list[tuple[str, Message]]) -> None:
        """Judge messages that are held no longer, and then those behind them."""
        for _, message in messages:
            message.is_overdue = True
        # Else the first that passes would release these, before the others are judged.
        behind = [
            each for did in dict.fromkeys(did for did, _ in messages) for each in self._held.release(did)
        ]
        for message in (*(message for _, message in messages), *behind):
            self.take(message)

    def _end(self, message: Message, judgement: Judgement) -> None:
        """Pass a message on, or drop it."""
        verdict = judgement.verdict
        self.output.verdicts[verdict.name, verdict.reason] += 1
        if verdict.name == "refused":
            self.reports.refused(message, verdict)
        passes = self._rules.passes(verdict.name)
        if passes:
            self._pass(message, judgement)
        self._done(message)
        if passes:
            self._release(message.did)

    def _pass(self, message: Message, judgement: Judgement) -> None:
        finding, output = message.finding, self.output
        assert finding is not None
        if judgement.missing_after:
            cause = message.envelope.type
            gap = Found(len(output.events), message.did, judgement.missing_after, message.rev, cause)
            output.gaps.append(gap)
            if cause == "commit" and (sync := sync_of(message.envelope)) is not None:
                output.events.append(sync)
        output.add(message.source, finding.events, finding.drops)
        self._beginning.note(message.rev)
        self.states.put(message.did, judgement.state)
        if self._deletions.is_over(message.did, message.source):
            self._deletions.begins_again(message.did)

    def _release(self, did: str) -> None:
        """Judge again what is held of a repository. What does not follow yet is held again."""
        if did in self._held:
            for message in self._held.release(did):
                self.take(message)

    def _decide_unsigned(self, message: Message) -> None:
        """Pass on an identity or account message, unless a source has said the same."""
        (event,), drops = extract(message.envelope)
        if message.envelope.type == "identity":
            passes = self._identities.passes(event.body, self._now_us)
        else:
            passes = self._offer_account(message, event)
        if not passes:
            self.output.drops[message.source, "repeat"] += 1
            self._note_deletion(message.source, message.did, event, told=False)
        elif message.envelope.type == "identity":
            self.output.add(message.source, [event], drops)
        else:
            self._pass_account(message.source, message.did, event, drops)

    def _offer_account(self, message: Message, event: Event) -> bool:
        host = self.hosting.source_of(message.did)
        return self._accounts.offer(message.source, message.did, event.body, host)

    def _pass_account(self, source: str, did: str, event: Event, drops: Sequence[str]) -> None:
        self.output.add(source, [event], drops)
        self._note_deletion(source, did, event, told=True)

    def _note_deletion(self, source: str, did: str, event: Event, *, told: bool) -> None:
        """Forget the state of an account that was deleted, once all sources that speak for it say so."""
        if event.kind == ACCOUNT and is_deletion(event.body):
            host = self.hosting.source_of(did)
            speak = self._accounts.relays if host is None else (host, *self._accounts.relays)
            if (state := self.states.get(did)) is not None:
                self._deletions.remember(did, state.rev, self._now_us)
            if self._deletions.note(did, source, speak, told=told):
                self.states.put(did, None)

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
