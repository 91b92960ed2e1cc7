"""The one ordered log of events: its interface, and the values that cross it.

A *position* is a `time_us`: the reader at position p has seen every event below p and none at or
above it. `floor <= position <= tip + 1`: events below the floor are gone, the tip is the newest
event. The rest of the server knows only what this module says. How events are stored is known to the package
that stores them (`eventlog.sqlite`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple, Protocol, runtime_checkable

from jetstream.eventlog.backpressure import Followers
from jetstream.model.batch import Batch
from jetstream.model.event import Key
from jetstream.model.filter import Filter
from jetstream.status import LogStatistics


class SourceCursor(NamedTuple):
    """How far one upstream was read.

    The server resumes after `seq`: every frame up to it is in the log, or was dropped.

    `provisional` is a higher number whose frame is in the log too. It may have been damaged, so the server
    never resumes after it. `fell_from` is what `seq` was before the upstream's numbers fell. It is kept while
    the log holds events from before the fall.

    Frames that wait, for a key or for the frames before them, are stored later than those behind them.
    `stored_to` is the highest seq that is stored; None: it is `seq`. `unstored` has the seqs between the two
    that are not stored yet, rising.
    """

    seq: int
    provisional: int | None = None
    fell_from: int | None = None
    stored_to: int | None = None
    unstored: tuple[int, ...] = ()


# The cursor of each source, by its name.
Cursors = Mapping[str, SourceCursor]


# The cause of a gap that is of all repositories.
UPSTREAM_GAP: Final = "upstream"


class Gap(NamedTuple):
    """Messages of one repository that never came: what follows `after_rev`, up to before `rev`.

    `time_us` is when it was found: the position of the event that showed it, or just after. `after_rev` is
    the newest revision that was passed on before, `rev` that of the message that showed the gap. `cause` is
    what kind of message that was: "commit" or "sync".

    With the cause `UPSTREAM_GAP`, it is of all repositories: a Jetstream that is read did not have the events
    any more. Then `did` is empty, and instead of revisions there are the positions of the events around it.
    """

    time_us: int
    did: str
    after_rev: str
    rev: str
    cause: str


class Changes(NamedTuple):
    """What is stored together with the events of one append.

    `cursors` has the cursor of every source that is in use; that of any other source is removed. `repos` has
    the states that have changed, by compact DID (`atproto.compact_did`): 24 bytes each
    (`verify.chain.State.packed`), None to forget it. `gaps` are those that were found. `accounts` has what is
    known of an account by a source, by (source, DID), as `admission` packs it; None to forget it.
    """

    cursors: Cursors
    repos: Mapping[bytes, bytes | None] = {}
    gaps: Sequence[Gap] = ()
    accounts: Mapping[tuple[str, str], bytes | None] = {}


class Log(Protocol):
    """A durable, totally ordered list of events."""

    @property
    def floor(self) -> int:
        """The lowest position from which nothing is missing; rises when events are trimmed."""

    @property
    def tip(self) -> int:
        """The highest position that may ever have been given out; 0 if none was.

        It is the position of the newest event, except after a loss of power. Then events up to it may be
        gone although readers have seen them. A new event's position is above it.
        """

    @property
    def oldest_us(self) -> int | None:
        """The position of the oldest event that is kept; None: the log is empty."""

    @property
    def followers(self) -> Followers:
        """The readers that the writer waits for."""


class LogReader(Log, Protocol):
    """What a reader needs of the log.

    Any number of readers read at positions of their own. Batches are shared: a reader must not change one.
    """

    async def read(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        """Return the batch with the first events in `[position, stop)` that `wanted` may want.

        The batch may begin before `position` and end after `stop`, and may hold events that are not
        wanted: it is as it was stored, shared with other readers. What it leaves out, before its first
        event and between its events, is not wanted, is below the floor, or was erased. It has an event in
        `[position, stop)`. None: nothing wanted in the whole range.

        A reader goes on behind the last event of the batch, or at `stop` after None. Damaged parts are
        passed over. Raises LogError where the range cannot be read otherwise; a log that another process
        writes may wait until it can.
        """

    @property
    def newest(self) -> int:
        """The highest position that the log was known to have at the last look: the tip, or above it.

        They differ where another process writes, and this one has not read all of it yet.
        """

    @property
    def cursor_max(self) -> int:
        """The highest cursor that is not of the future, by what was known at the last look.

        It is `newest + 1`, or above it where that is not known: a replica may be behind.
        """

    @property
    def watermark(self) -> int:
        """The position below which nothing more comes, by what the writer has told; 0: not known.

        All events below it are at or below `tip`: they can be read.
        """

    async def look(self) -> None:
        """Learn the newest position, where another process writes. Raises LogError."""

    async def wait(self, position: int) -> None:
        """Return once an event at or after `position` has been appended, and can be read.

        There is no deadline. Returns at once if there is one already.
        """

    async def gaps(self, since_us: int, count_max: int) -> list[Gap]:
        """Return the oldest gaps that were found at `since_us` or later, rising by time.

        They are `count_max`, and all others that were found at the same time as the last one. Gaps are kept
        as long as events, up to some number. Raises LogError.
        """

    def statistics(self) -> LogStatistics:
        """Return what the log holds. Cheap enough to call for every request."""


class LogWriter(Log, Protocol):
    """What the one writer needs of the log."""

    # Statuses of account events that erase the account's records. They may be changed between two appends.
    erases: frozenset[str]
    # Tells the lowest position that the next append may have, which never falls. What stamps events sets it;
    # until then, it is the one above the tip.
    next_position: Callable[[], int]

    @property
    def cursors(self) -> Cursors:
        """The cursors as of the last append."""

    async def append(self, batch: Batch, changes: Changes, received_at: float | None = None) -> None:
        """Store events and all changes together, or neither.

        `batch` follows the tip. It may be empty when there are only changes. `received_at` is when the oldest
        of the events was received, in monotonic seconds; None when that is unknown. When this returns, all
        survive the process, and readers see the events.

        Raises LogUnwritable with nothing stored.

        One append runs at a time; a second one waits for it. Each position of `batch` is at least
        `next_position`. The log keeps no reference to `batch`. LogCorrupt and Fenced end the writer: see
        the engines.
        """

    def repo(self, did: bytes) -> bytes | None:
        """Return the state of a repository by its compact DID, as of the last append.

        None: it is not known. States that did not change for long, or that are damaged, may be forgotten.
        Takes some microseconds. Raises LogError.
        """

    def accounts(self) -> Mapping[tuple[str, str], bytes]:
        """Return what is stored of accounts, by source and DID. Reads all of it. Raises LogError."""

    async def holds(self, keys: Collection[Key]) -> dict[Key, int]:
        """Return the keys of which an event is kept, each with a position.

        That is the position of the event, or a later one of what is stored with it. Events that were trimmed
        or erased are not found. A key that is not there costs a search of the whole log, a second for a day
        of it: ask for a dozen keys at a time.
        """

    async def keys_from(self, position: int, stop: int) -> set[Key]:
        """Return the keys of the oldest events in `[position, stop)`: some thousands, or all there are.

        Keys of events that are stored with them may be there too. Damaged parts are skipped.
        """


@runtime_checkable
class LoadsAhead(Protocol):
    """A writer whose states of repositories are in a database, for which `repo` does not wait.

    It has those that have changed lately, or were loaded before. Of any other it raises LogError.
    """

    def has_repo(self, did: bytes) -> bool:
        """Tell whether `repo` has the state of a repository at hand, by its compact DID."""

    async def load_repos(self, dids: Collection[bytes]) -> None:
        """Have the states of some repositories at hand, at least until the next call. Raises LogError.

        Those that are not are loaded all at once.
        """


class ReadWriteLog(LogReader, LogWriter, Protocol):
    """What the writer needs that reads what it has written."""
