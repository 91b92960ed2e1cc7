"""Pages of a directory's `/export`: what they say, and where the next one begins. Pure.

`GET /export?count=1000&after=…` gives operations of all accounts, one JSON object a line, in either of two
orders. With a number, those with a higher sequence number (`seq`), in its order. With a date, those that were
created later, in the order of `createdAt`, which has no sequence number. The first request has `after=0`: a
directory that knows no sequence numbers takes that for a date, or refuses it. Then `after` is left out.

Dates need care in two ways. Several operations may have the same date, and a page may end between them: the
next one begins before that date, and repeats some. And an operation may become visible after a later one: at
the end of the export, the next page begins some seconds back. Operations that come twice do no harm.

Source: the server of did-method-plc, `routes.ts` and `db/index.ts`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple
from urllib.parse import quote

import orjson

from jetstream.atproto.compact_did import is_plc
from jetstream.identity.documents import Declared, operation_declared, operation_us
from jetstream.identity.failures import NoKey
from jetstream.model.timestamp import parse_time, to_date

_MILLISECOND_US: Final = 1_000  # the directory's dates have no finer unit
# Of an answer, and of an operation, which has at most 7,500 bytes of CBOR. A value of JSON can take twenty
# times as much memory as its text.
_LINES_MAX: Final = 10_000
_LINE_BYTES_MAX: Final = 64 << 10
_EXAMPLE_CHARS: Final = 80  # of a line that cannot be read, and of what is said of it
_SEQ_MAX: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a directory's export was read. It is kept in the file of keys, as JSON, with what was read."""

    directory: str = ""  # its URL, without what may be secret
    after: str = "0"  # where the next request begins: a sequence number, or a date
    newest_us: int = 0  # the directory's time of the newest operation
    operations: int = 0  # that were read in all
    # Until when, in unix seconds, every operation is known; 0: the end was not reached yet.
    complete_s: int = 0
    unreadable: int = 0  # lines that are no operation; they are counted in `operations` too


def parse_progress(stored: bytes) -> Progress:
    """Return what `orjson.dumps` has made of a progress; that of the beginning if it is damaged.

    It may be from an earlier version, which had fewer fields.
    """
    try:
        found = Progress(**orjson.loads(stored))
        numbers = (found.newest_us, found.operations, found.complete_s, found.unreadable)
        usable = all(type(number) is int and number >= 0 for number in numbers)
        parse_time(found.after or "0", 0)
    except (ValueError, TypeError):
        return Progress()
    return found if usable and isinstance(found.directory, str) else Progress()


class Operation(NamedTuple):
    """What an operation says of an account."""

    did: str
    declared: Declared  # what counts from then on
    created_us: int  # the directory's time, in unix microseconds
    seq: int | None  # None: the page is in the order of dates
    nullified: bool  # it was declared void by a later one


class Page(NamedTuple):
    """One answer."""

    operations: list[Operation]  # as they came
    unreadable: int  # lines that are no operation
    example: str = ""  # how one of these begins, and what is wrong with it

    @property
    def lines(self) -> int:
        """How many operations the directory has sent, readable or not."""
        return len(self.operations) + self.unreadable

    @property
    def accounts(self) -> dict[str, Declared]:
        """What each account has declared last, without operations that were nullified."""
        return {each.did: each.declared for each in self.operations if not each.nullified}


def path_of(progress: Progress, count: int) -> str:
    """Return the path and query of the next request, for `count` operations at most."""
    after = f"&after={quote(progress.after)}" if progress.after else ""
    return f"/export?count={count}{after}"


def parse_page(body: bytes) -> Page:
    """Read an answer. Raises NoKey (`malformed`) if none of its lines is an operation.

    An empty body is an empty page. Single lines that cannot be read are counted, since one bad line must not
    keep the keys of all other accounts away. It may run in a thread.
    """
    if body.count(b"\n") > _LINES_MAX:
        raise NoKey("malformed", f"it has more than {_LINES_MAX:,} lines")
    operations: list[Operation] = []
    unreadable = 0
    example = ""
    for line in body.split(b"\n"):
        if line.strip():
            try:
                operations.append(_parse_line(line))
            except (NoKey, ValueError) as error:
                unreadable += 1
                example = f"{line[:_EXAMPLE_CHARS]!r}: {str(error)[:_EXAMPLE_CHARS]}"
    if unreadable and not operations:
        raise NoKey("malformed", f"it is no export; it begins {body[:40]!r}")
    return Page(operations, unreadable, example)


def _parse_line(line: bytes) -> Operation:
    """Read a line. Raises ValueError or NoKey.

    An operation without a usable key is one: its account has no key from then on.
    """
    if len(line) > _LINE_BYTES_MAX:
        raise ValueError("is too long for an operation")
    entry = orjson.loads(line)
    if not isinstance(entry, dict) or not isinstance(did := entry.get("did"), str) or not is_plc(did):
        raise ValueError("is no operation of a did:plc")
    seq = entry.get("seq")
    if seq is not None and (type(seq) is not int or not 0 <= seq <= _SEQ_MAX):
        raise ValueError("has a seq that is none")
    found = operation_declared(entry.get("operation"))
    return Operation(did, found, operation_us(entry), seq, entry.get("nullified") is True)


class Step(NamedTuple):
    """Where the export continues after a page."""

    progress: Progress
    at_end: bool  # there was nothing after the page when it was made


def advance(progress: Progress, page: Page, largest: int, overlap_us: int) -> Step:
    """Return where to continue.

    `largest` is how many operations the largest page so far had, this one included: a page that is smaller is
    the last one. `overlap_us` is how far back the next page begins at the end of an export without sequence
    numbers. Raises NoKey (`malformed`) for a directory that gives the same operations again and again.
    """
    newest_us = max((each.created_us for each in page.operations), default=progress.newest_us)
    progress = replace(
        progress,
        operations=progress.operations + page.lines,
        unreadable=progress.unreadable + page.unreadable,
        newest_us=max(progress.newest_us, newest_us),
    )
    # Directories differ in how many they send at most. The largest page so far tells how many that is.
    at_end = not page.lines or page.lines < largest
    seqs = [each.seq for each in page.operations if each.seq is not None]
    if seqs:
        return Step(replace(progress, after=_number_after(progress.after, max(seqs))), at_end)
    if not progress.after.isdecimal() or page.operations:
        after = (
            to_after(progress.newest_us - overlap_us) if at_end else _date_after(progress.after, newest_us)
        )
        progress = replace(progress, after=after)
    return Step(progress, at_end)


def _number_after(after: str, newest: int) -> str:
    """Return the sequence number after which the next page begins. Raises NoKey if it has not risen."""
    if after.isdecimal() and newest <= int(after) != 0:
        raise NoKey("malformed", f"it has no operation after {after}, which was asked for")
    return str(newest)


def _date_after(after: str, newest_us: int) -> str:
    """Return the latest date that is before all operations which may be missing. Raises NoKey.

    That is the one before the newest operation, since others that are still to come may have the same date.
    If this page was asked for from there, it is the date itself: else the same page would come again.
    """
    asked_us = -1 if after in {"", "0"} else parse_time(after, 0)
    for begin_us in (newest_us - _MILLISECOND_US, newest_us):
        if begin_us > asked_us:
            return to_after(begin_us)
    raise NoKey("malformed", f"it has no operation after {after}, which was asked for")


def before(after: str) -> str:
    """Return the number or the date just before another one: a page from there has what is at it."""
    if after.isdecimal():
        return str(max(int(after) - 1, 0))
    return to_after(parse_time(after, 0) - _MILLISECOND_US)


def to_after(time_us: int) -> str:
    """Return a time as a date with milliseconds, as the directory writes it."""
    return f"{(to_date(max(time_us, 0)) or '')[:-4]}Z"
