"""What a message lacks until it can be judged: its examination, a key, or the account's earlier keys.

    prepare ─▶ task with the keys in memory and in the file ─▶ finding
                                                                 │
    missing ◀────────────────────────────────────────────────────┘
       ├─▶ no finding (it was a copy)    `_examine_copy`
       ├─▶ no key                        `_with_key`, once (`Message.asked`)
       ├─▶ the signature does not fit    `_with_earlier_keys`, once (`Message.retried`)
       └─▶ None: it can be judged

An account that has changed its key is the usual reason for a signature that does not fit. So one such message
does not mean that it is forged: the keys of its time decide (AT Protocol specification, cryptography page and
DID page).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final

from jetstream.admission.examiners.examination import Finding, Task, examine, with_keys, without_keys
from jetstream.admission.hosting import Hosting
from jetstream.admission.message import IN_REPOSITORIES, Message
from jetstream.admission.parts import Examine, Keyring
from jetstream.admission.rules import Rules
from jetstream.admission.states import States
from jetstream.atproto.encoded_key import EncodedKey
from jetstream.identity.answers import JUST_ASKED, UNREADABLE
from jetstream.identity.generations import Generations
from jetstream.limits import Limits

# Why earlier keys may be missing: the account was asked for a moment ago, its own log cannot be used, and
# directories give no logs. The last counts only while none of them gives anybody one: a request may also be
# late because there are too many. All others are final: nobody must be able to have a forged message pass as
# one that cannot be verified. What is in its own log, only the account and the directory decide.
_LATER: Final = frozenset({JUST_ASKED, "overload"})
_ITS_OWN: Final = frozenset({UNREADABLE, "too_big"})
_OUTAGES: Final = frozenset(
    {"status", "timeout", "unreachable", "tls", "rate_limited", "redirect", "malformed"}
)


class Signatures:
    """Has messages examined with the keys of their accounts. `keys` is None where nothing is verified.

    What it returns to wait for is a coroutine, which the caller runs as a task and may cancel
    (`suspended`). It returns the finding that the message has then.
    """

    def __init__(
        self,
        rules: Rules,
        states: States,
        hosting: Hosting,
        examine: Examine,
        keys: Keyring | None,
        limits: Limits = Limits(),
    ) -> None:
        # Whether messages must be signed, and how they are examined.
        self._rules = rules
        # Tells which messages are repeats: they are not examined.
        self._states = states
        self._hosting = hosting
        self._examine = examine
        self._keys = keys
        self._limits = limits.upstream
        # Messages that are prepared in one turn of the event loop, and seconds until an account is asked
        # for again.
        self._per_turn = limits.admission.prepared_per_turn
        self._ask_again_s = limits.admission.ask_again_s
        # The accounts that were asked for twice lately (`_with_earlier_keys`). A forged message must not
        # delay each one behind it.
        self._asked_again: Generations[str, bool] = Generations(limits.admission.asked_again_max)
        # The DID and rev of each message that is examined or waits. A copy of it is not examined.
        self._examined: set[tuple[str, str]] = set()

    async def prepare(self, messages: Sequence[Message]) -> list[Task | None]:
        """Return the task of each message; None if it is not examined now.

        That is so for a repeat, for a copy of a message that is examined or waits, and for a message that
        nobody signs. May wait for the file of keys.
        """
        found = {} if self._keys is None else await self._find_keys(messages, self._keys)
        tasks: list[Task | None] = []
        for number, each in enumerate(messages, 1):
            is_signed = each.envelope.type in IN_REPOSITORIES
            tasks.append(self._first_task(each, found.get(each.did)) if is_signed else None)
            if number % self._per_turn == 0:
                await asyncio.sleep(0)
        return tasks

    async def _find_keys(self, messages: Sequence[Message], keys: Keyring) -> Mapping[str, EncodedKey | None]:
        """Return the keys of messages by DID, as far as memory and the file have them.

        What has announced that its key may have changed is noted. A PDS must not have the keys of others
        fetched: of an account that has moved to it, the document is fetched anyway (`hosting`).
        """
        found: dict[str, EncodedKey | None] = {}
        for message in messages:
            if message.envelope.type == "identity":
                if self._hosting.speaks_for(message.host, message.did):
                    keys.announced(message.did)
            elif self._rules.needs_keys and message.did not in found:
                found[message.did] = keys.cached(message.did)
        if missing := [did for did, key in found.items() if key is None]:
            await keys.load(missing)
            found |= {did: keys.cached(did) for did in missing}
        return found

    def missing(self, message: Message) -> Coroutine[Any, Any, Finding] | None:
        """Return what a message must wait for; None: it can be judged.

        Sets its finding where that takes no waiting. A message that was let go is examined here and now,
        with the keys that are at hand. It waits for nothing, so it is judged as one without a key if none
        is.
        """
        finding = message.finding
        if finding is None:
            if not message.is_let_go:
                return self._examine_copy(message)
            finding = message.finding = examine(self._task_now(message), self._rules.mode, self._limits)
        if self._keys is None or not self._rules.needs_keys:
            return None
        if message.is_let_go:
            # It has waited for its full time, and no directory answers: the account may have another key
            # by now.
            if message.is_late and finding.signed is False and self._keys.is_out:
                message.finding = self._unsigned(message, finding)
            return None
        return self._missing_key(message, finding, self._keys)

    def _missing_key(
        self, message: Message, finding: Finding, keys: Keyring
    ) -> Coroutine[Any, Any, Finding] | None:
        """Return which keys a message that was examined must wait for; None: it can be judged.

        Those that have come since then are tried at once.
        """
        if self._rules.lacks_key(finding) and not message.asked:
            if (key := keys.cached(message.did)) is None:
                message.asked = True
                return self._with_key(message, finding, keys)
            finding = message.finding = self._checked(message, finding, [key])
        if finding.signed is False and not message.retried:
            message.retried = True
            known = keys.known_at(message.did, message.rev)
            if not known or not (checked := self._checked(message, finding, known)).signed:
                return self._with_earlier_keys(message, finding, keys)
            message.finding = checked
        return None

    def done(self, message: Message) -> None:
        """Note that a message is judged: a copy of it is examined again, if it is not known by then."""
        if message.finding is not None:
            self._examined.discard((message.did, message.rev))

    def _first_task(self, message: Message, key: EncodedKey | None) -> Task | None:
        """Return the task of a message that has arrived; None if it is a copy or a repeat."""
        place = (message.did, message.rev)
        if place in self._examined or self._states.knows(message.envelope):
            return None
        self._examined.add(place)
        return self._task(message, key)

    def _task(self, message: Message, key: EncodedKey | None) -> Task:
        """Return the task of a message with the keys that are at hand, the present one first."""
        if key is None or self._keys is None:
            return _with(message, ())
        known = self._keys.known_at(message.did, message.rev)
        return _with(message, tuple(dict.fromkeys((key, *known))) if known else (key,))

    def _task_now(self, message: Message) -> Task:
        """Return the task of a message with the keys at hand now; none, where none is needed."""
        keys = self._keys if self._rules.needs_keys else None
        return self._task(message, None if keys is None else keys.cached(message.did))

    async def _examine_copy(self, message: Message) -> Finding:
        """Examine a message that was taken for a copy, since the one that was examined was not passed on."""
        (finding,) = await self._examine([self._task_now(message)])
        return finding

    async def _with_key(self, message: Message, finding: Finding, keys: Keyring) -> Finding:
        """Wait for the key of a message, and check its signature. Without one, return its finding."""
        key = (await keys.wait(message.did, message.source)).key
        return finding if key is None else self._checked(message, finding, [key])

    async def _with_earlier_keys(self, message: Message, finding: Finding, keys: Keyring) -> Finding:
        """Check the signature of a message with all keys that its account had at its rev.

        If they could not be had, it is as if there was no key: the account may have another one by now.
        """
        found = await keys.after_failure(message.did, message.rev, message.source)
        if found.reason in _LATER and message.did not in self._asked_again:
            self._asked_again.put(message.did, True)
            await asyncio.sleep(self._ask_again_s)
            found = await keys.after_failure(message.did, message.rev, message.source)
        if found.keys and (checked := self._checked(message, finding, found.keys)).signed:
            return checked
        if found.reason in _ITS_OWN or (found.reason in _OUTAGES and keys.is_out):
            message.asked = True
            return self._unsigned(message, finding)
        return finding

    def _unsigned(self, message: Message, finding: Finding) -> Finding:
        """Return the finding of a message whose signature did not fit, as if no key was known."""
        return without_keys(_with(message, ()), finding, self._rules.mode, self._limits)

    def _checked(self, message: Message, finding: Finding, keys: Sequence[EncodedKey]) -> Finding:
        """Check the signature of a message that was examined, with other keys, in this process."""
        return with_keys(_with(message, tuple(keys)), finding, self._rules.mode, self._limits)


def _with(message: Message, keys: tuple[EncodedKey, ...]) -> Task:
    """Return the task of a message with these keys, the likeliest first."""
    return Task(message.envelope.type, message.envelope.fields, keys)
