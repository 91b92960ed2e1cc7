"""What an `Admission` needs of the rest of the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from jetstream.admission.accounts import Accounts
from jetstream.admission.deletions import Deletions
from jetstream.admission.examiners.examination import Finding, Task
from jetstream.admission.identities import Identities
from jetstream.atproto.encoded_key import EncodedKey
from jetstream.conditions import Conditions
from jetstream.eventlog import Changes, Cursors, LoadsAhead
from jetstream.identity.answers import Answer, Candidates
from jetstream.metrics import AdmissionMetrics
from jetstream.model.event import Event, Key

# Examines tasks: `examiners.pool.Examiners.examine`.
Examine = Callable[[Sequence[Task]], Awaitable[list[Finding]]]
# Stamps and stores events with what belongs to them, which may depend on the position of the first event:
# `Ingest.admit`. Returns when more may come.
Append = Callable[[Sequence[Event], Callable[[int], Changes], float | None], Awaitable[None]]


class Log(Protocol):
    """The log: a part of `jetstream.eventlog.LogWriter`."""

    @property
    def floor(self) -> int:
        """The lowest position from which nothing is missing."""

    @property
    def tip(self) -> int:
        """The newest position."""

    @property
    def cursors(self) -> Cursors:
        """The cursors as of the last append."""

    def repo(self, did: bytes) -> bytes | None:
        """Return the packed state of a repository, by its compact DID. None: nothing of it was passed on.

        It does not wait. With `Parts.ahead`, it raises LogError for a state that is not at hand.
        """

    async def holds(self, keys: Collection[Key]) -> dict[Key, int]:
        """Return the keys of which an event is kept, each with a position. Raises LogError."""

    async def keys_from(self, position: int, stop: int) -> set[Key]:
        """Return the keys of the oldest events in `[position, stop)`, some thousand at most."""


class Keyring(Protocol):
    """The keys of accounts: `admission.keys`."""

    def cached(self, did: str) -> EncodedKey | None:
        """Return the key of an account that is in memory. None: it must be loaded or fetched."""

    async def load(self, dids: Sequence[str]) -> None:
        """Read the keys of accounts from the file into memory. One that is not in the file is not fetched."""

    def wait(self, did: str, source: str) -> Awaitable[Answer]:
        """Return the key of an account, or why there is none. A message of `source` needs it.

        Each source has its share of the requests that wait, so one source cannot hold up the others.
        """

    def after_failure(self, did: str, rev: str, source: str) -> Awaitable[Candidates]:
        """Return the keys that an account had at a rev, for a signature that its key does not fit."""

    @property
    def is_out(self) -> bool:
        """Whether no directory answers, or none gives audit logs."""

    def known_at(self, did: str, rev: str) -> Sequence[EncodedKey]:
        """Return what memory has of these keys, since they were asked for."""

    def pds(self, did: str) -> str | None:
        """Return the host of an account's PDS that memory has: empty, if there is none. None: not known."""

    def find_pds(self, did: str, source: str) -> Awaitable[None]:
        """Return when `pds` has what the document of an account says now, if it can be fetched."""

    def announced(self, did: str) -> None:
        """Note that an account may have changed its key."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of the server that an `Admission` uses. `now_us` gives unix microseconds.

    `opening.opened` makes them. Several parts of an admission share them: the judge, the queue, what
    waits.
    """

    log: Log
    append: Append
    examine: Examine
    # None: nothing is verified, and no source is a PDS.
    keys: Keyring | None
    # What sources have said of accounts; its rows are stored with each append.
    accounts: Accounts
    # Identity messages and deletions of a short time ago. They are in memory only, and read from the log when
    # the server starts.
    identities: Identities
    deletions: Deletions
    # Returns the names of the sources that have a connection.
    connected: Callable[[], Collection[str]]
    metrics: AdmissionMetrics
    conditions: Conditions
    now_us: Callable[[], int]
    # Has states of repositories at hand before `log.repo` is asked for them; None: it always can be.
    ahead: LoadsAhead | None = None
