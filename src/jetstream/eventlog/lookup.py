"""Looking up events by content: whether and where the log holds them. For a dozen keys at a time.

Upstream asks when numbers of frames are in doubt: a frame whose events are stored is a repeat. A key is DID,
collection, rkey and rev, which no two events share. Look-ups are rare, so there is no index of keys, which
would take more room than all other indexes. A key that is stored is usually found near the tip. One that is
not costs a search of all Bloom filters, a second for a day of events.

The search goes from the newest event to the oldest, in steps. Each step is a short snapshot, so that a long
search holds nothing back. The tail is searched before the segments: sealing moves events in that direction,
so none is missed between two steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from zlib import crc32

from jetstream.eventlog.reader import POSITION_MAX, StoredReader
from jetstream.eventlog.segment import DID_BITS, decompress, holds_did, unpack_accounts
from jetstream.model.batch import Batch
from jetstream.model.did_set import DidSet
from jetstream.model.event import Key
from jetstream.model.filter import EVERYTHING, Filter


def in_batches(batches: Iterable[Batch], keys: Collection[Key]) -> dict[Key, int]:
    """Return which of the keys have an event in these batches, each with its position.

    Of each batch, only the events of the wanted DIDs are made single values. Stops at the last key. Used
    for the hot tail, newest batch first, and for rows of the tail.
    """
    missing, found = set(keys), dict[Key, int]()
    dids = {key[0] for key in missing}
    for batch in batches:
        if not missing:
            break
        if not dids.isdisjoint(batch.dids):
            here = {batch.event(i).key: batch.times[i] for i, did in enumerate(batch.dids) if did in dids}
            found.update((key, here[key]) for key in here.keys() & missing)
            missing -= here.keys()
    return found


def in_store(reader: StoredReader, keys: set[Key], stop: int) -> tuple[dict[Key, int], str | None]:
    """Return which of the keys have a stored event, and the damage that has ended the search, if any.

    Each key has the position of its event or the last one of its segment. The tail is searched below position
    `stop`. Damaged parts count as if they held nothing: an event that is delivered twice is better than one
    that is never delivered.

    Runs in a reader thread. A segment that is deleted during the search counts as not there.
    """
    found: dict[Key, int] = {}
    try:
        found |= in_batches((row.columns.batch() for row in reader.tail_rows(0, stop) if row.events), keys)
        position: int | None = POSITION_MAX
        while found.keys() != keys and position is not None:
            position, here = _step(reader, keys - found.keys(), position)
            found |= here
    except reader.errors as error:
        return found, str(error)
    return found, None


def keys_within(batches: Iterable[Batch], position: int, stop: int) -> set[Key]:
    """Return the keys of the events in `[position, stop)` of these batches.

    Empty where no batch has events in the range. Used for what is only in the journal.
    """
    return {batch.event(i).key for batch in batches for i in range(batch.index(position), batch.index(stop))}


def keys_from(reader: StoredReader, position: int, stop: int) -> set[Key]:
    """Return the keys of the oldest events in `[position, stop)`, to the end of a segment or row.

    These are `LogLimits.lookup_keys` or slightly more. Damaged parts are skipped, and their keys are missing.
    """
    found: set[Key] = set()
    enough = reader.limits.lookup_keys
    with reader.snapshot():
        for last_us in reader.oldest(position, stop):
            with suppress(*reader.errors):
                found |= _in_segment(reader, last_us)
            if len(found) >= enough:
                return found
        for row in reader.tail_rows(position, stop):
            if row.events:
                found.update(_keys(row.columns.batch()))
            if len(found) >= enough:
                break
    return found


def _step(reader: StoredReader, keys: set[Key], below: int) -> tuple[int | None, dict[Key, int]]:
    """Search the next segments below a key; return where to continue, None at the end, and what was found.

    It reads the Bloom filters of `scan_segments` segments, newest first. A segment is opened only if the
    bit of one of the DIDs is set, which one DID in a hundred has by chance.
    """
    wanted = Filter(dids=DidSet(key[0] for key in keys))
    bits = [crc32(did) % DID_BITS for did in wanted.dids]
    found: dict[Key, int] = {}
    indexes = reader.newest(below)
    for last_us, did_bits in indexes:
        with suppress(*reader.errors):  # reported when a reader gets there
            bitmap = decompress(did_bits)
            if any(bitmap[bit >> 3] >> (bit & 7) & 1 for bit in bits):
                found = dict.fromkeys(_in_segment(reader, last_us, wanted) & keys, last_us) | found
        if found.keys() == keys:
            break
    return (indexes[-1][0] if len(indexes) == reader.limits.scan_segments else None), found


def _in_segment(reader: StoredReader, last_us: int, wanted: Filter = EVERYTHING) -> set[Key]:
    """Return the keys of a segment, unless it has none of the DIDs that `wanted` names. Raises Damaged."""
    row = reader.keys_of(last_us)
    if row is None or (wanted.dids and not holds_did(row[0], wanted)):
        return set()
    dids, collections, rkeys, revs = (decompress(text).split(b"\n") for text in row[:-1])
    commits, accounts = zip(dids, collections, rkeys, revs, strict=True), unpack_accounts(row[-1])
    return set(commits).union(() if accounts is None else _keys(accounts.batch()))


def _keys(batch: Batch) -> Iterator[Key]:
    """Return the key of each event of a batch."""
    return (batch.event(i).key for i in range(len(batch)))
