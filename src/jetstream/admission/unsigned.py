"""Identity and account messages, which nobody signs: which of them pass, and what a deletion changes.

    #identity ─▶ identities   an equal one has passed a short time ago?
    #account  ─▶ accounts     is it of the source that decides for the account?
                    └─▶ deletions   a deletion ends the state of the repository

Whether the source may speak for the account was decided before (`hosting`).
"""

from __future__ import annotations

from collections.abc import Sequence

from jetstream.admission.accounts import Difference
from jetstream.admission.hosting import Hosting
from jetstream.admission.message import Message, is_deletion
from jetstream.admission.output import Output
from jetstream.admission.parts import Parts
from jetstream.admission.states import States
from jetstream.model.event import ACCOUNT, Event
from jetstream.upstream.extract import extract


class Unsigned:
    """Judges identity and account messages. `now_us` is the time, in unix microseconds.

    It decides at once: none of these messages waits here. It adds to the output that it is given.
    """

    def __init__(self, parts: Parts, states: States, hosting: Hosting) -> None:
        self._accounts = parts.accounts
        # Those that were passed on a short time ago.
        self._identities = parts.identities
        # Accounts that are deleted, while sources are behind.
        self._deletions = parts.deletions
        self._states = states
        self._hosting = hosting

    def judge(self, message: Message, output: Output, now_us: int) -> None:
        """Pass on an identity or account message, unless a source has said the same.

        One that does not pass is counted as a `repeat`. A deletion counts for the state of its repository
        all the same: it shows how far its source has come.
        """
        (event,), drops = extract(message.envelope)
        if message.envelope.type == "identity":
            passes = self._identities.passes(event.body, now_us)
        else:
            host = self._hosting.source_of(message.did)
            passes = self._accounts.offer(message.source, message.did, event.body, host)
        if not passes:
            output.drops[message.source, "repeat"] += 1
            self._note_deletion(message.source, message.did, event, now_us, told=False)
        elif message.envelope.type == "identity":
            output.add(message.source, [event], drops)
        else:
            self._pass_account(message.source, message.did, event, drops, output, now_us)

    def tell_accounts(self, differences: Sequence[Difference], output: Output, now_us: int) -> None:
        """Pass on what readers must be told of accounts because another source decides."""
        for source, did, body in differences:
            event = Event(ACCOUNT, did.encode(), b"", b"", b"", b"", body)
            self._pass_account(source, did, event, (), output, now_us)

    def _pass_account(
        self, source: str, did: str, event: Event, drops: Sequence[str], output: Output, now_us: int
    ) -> None:
        """Add an account event to the output, and take account of a deletion that readers are told of."""
        output.add(source, [event], drops)
        self._note_deletion(source, did, event, now_us, told=True)

    def _note_deletion(self, source: str, did: str, event: Event, now_us: int, *, told: bool) -> None:
        """Forget the state of an account that was deleted, once all sources that speak for it say so.

        Until then the state stays, since a source that is behind still sends what came before
        (`deletions`).
        """
        if event.kind == ACCOUNT and is_deletion(event.body):
            if (state := self._states.get(did)) is not None:
                self._deletions.remember(did, state.rev, now_us)
            if self._deletions.note(did, source, self._hosting.speakers(did), told=told):
                self._states.put(did, None)
