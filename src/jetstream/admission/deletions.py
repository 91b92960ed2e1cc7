"""Accounts that readers were told are deleted, while other sources still send what came before. Pure.

After the `#account` of a deletion, a repository may begin again at any rev. So its state is forgotten, and
nothing tells any more that a message was passed on. But a source that is behind has not said so yet: its next
messages are those from before the deletion, which readers must not get again. So the state is kept until all
sources that speak for the account have said that it is deleted. Meanwhile,

    a source that has said so    is judged as if there was no state
    any other                    is judged by the state

A source that has said so may send again what came before, under new numbers: its numbering may restart. So
the newest rev before a deletion is remembered. Where there is no state, a message up to that rev is a repeat,
unless it begins a repository, and not before the deletion as far as clocks can tell.

A server that starts reads the last deletions from the log. It does not know their newest revs, so the time of
the deletion counts. This is for what comes again after a crash, because something else had waited.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress
from typing import Final, NamedTuple

import orjson

from jetstream.atproto.tid import CLOCK_IDS, tid
from jetstream.model.timestamp import parse_time

# How far the clock of a PDS may be behind ours, in microseconds: as far as it may be ahead (`verify.chain`).
_BEHIND_US: Final = 300_000_000
# And how far the clock of the process that stored an event: one that is further off does not lead.
_STORED_BEHIND_US: Final = 60_000_000


class _Deletion:
    """One account: who has said that it is deleted, and whether readers were told."""

    __slots__ = ("said", "told")

    def __init__(self) -> None:
        # The sources that have said so.
        self.said: set[str] = set()
        # Whether readers were told: once it is True, it stays so.
        self.told = False


class _Ended(NamedTuple):
    """The revs of a repository that was deleted."""

    newest: str  # of the messages before the deletion
    first: str  # the lowest rev that a repository can begin with after it


class Deletions:
    """The accounts of which some sources have said so, `entries_max` at most: the oldest is forgotten first.

    The state of one that is forgotten stays, and its next message is a gap at worst. The revs from before a
    deletion are remembered for as many accounts.
    """

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        # By DID, in the order in which somebody said it first.
        self._deletions: OrderedDict[str, _Deletion] = OrderedDict()
        # By DID, in the order of deletion.
        self._ended: OrderedDict[str, _Ended] = OrderedDict()

    def __len__(self) -> int:
        """Return how many deletions some sources have not told of yet."""
        return len(self._deletions)

    def __contains__(self, did: object) -> bool:
        """Return whether some sources have not said yet that an account is deleted."""
        return did in self._deletions

    def note(self, did: str, source: str, sources: Collection[str], *, told: bool) -> bool:
        """Note that a source says an account is deleted; return whether its state is to be forgotten.

        `sources` are those that speak for the account. `told` is whether readers are told now.
        """
        deletion = self._deletions.setdefault(did, _Deletion())
        deletion.said.add(source)
        deletion.told |= told
        if deletion.told and deletion.said.issuperset(sources):
            del self._deletions[did]
            return True
        if len(self._deletions) > self._entries_max:
            self._deletions.popitem(last=False)
        return False

    def is_over(self, did: str, source: str) -> bool:
        """Return whether a message of this source is from after the deletion."""
        deletion = self._deletions.get(did)
        return deletion is not None and deletion.told and source in deletion.said

    def remember(self, did: str, newest: str, now_us: int) -> None:
        """Remember the newest rev of an account that is being deleted, at a time in unix microseconds.

        After the deletion, a repository may begin with a rev of up to five minutes before that time.
        """
        self._remember(did, _Ended(newest, tid(max(now_us - _BEHIND_US, 0), 0)))

    def restore(self, did: str, body: bytes, time_us: int) -> None:
        """Remember a deletion that is in the log: the body of its event, and its position.

        The clock of the process that stored it may have been behind by up to a minute.
        """
        at_us = time_us
        with suppress(KeyError, ValueError):  # it may have no time, or any text
            at_us = min(time_us + _STORED_BEHIND_US, parse_time(orjson.loads(body)["time"], time_us))
        self._remember(did, _Ended(tid(at_us, CLOCK_IDS - 1), tid(at_us, 0)))

    def _remember(self, did: str, ended: _Ended) -> None:
        """Remember the revs of a deletion, as the newest of all. If there are too many, forget the oldest."""
        self._ended.pop(did, None)
        self._ended[did] = ended
        if len(self._ended) > self._entries_max:
            self._ended.popitem(last=False)

    def is_from_before(self, did: str, rev: str, *, begins: bool) -> bool:
        """Return whether a message of a repository without a state is from before its deletion.

        `begins` is whether it is a commit that names none before it.
        """
        ended = self._ended.get(did)
        if ended is None or rev > ended.newest:
            return False
        return not begins or rev < ended.first

    def begins_again(self, did: str) -> None:
        """Note that a message from after the deletion was passed on: the account has a new state."""
        self._deletions.pop(did, None)
