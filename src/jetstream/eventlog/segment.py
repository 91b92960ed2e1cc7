"""A sealed segment: some thousand events as compressed columns, with an index that lets a reader skip it.

    times            differences, 8 bytes each; the first is the first event's time                zstd
    kinds … bodies   the values, separated by newlines; see `columns`                              zstd
    collection_set   the collections of the segment, sorted, separated by newlines                 zstd
    did_bits         a Bloom filter of 2^18 bits with one hash: bit crc32(DID) mod 2^18 is set     zstd
                     for each DID of the segment
    accounts         copies of the events without a collection: their number as 4 bytes, then      zstd
                     their columns as in the tail, separated by NULs

Each column is one zstd frame with a checksum. So a damaged column is never read as events, and never taken
as a reason to skip some.

Identity, account and sync events have no collection. They pass every filter of collections, and nearly every
segment has some. Their copies take under 1 % of the bytes, and spare a reader of a rare collection, or of
these kinds alone, from loading whole segments.

Pure: bytes in, values out. What the format fixes stands here; the sizes at which events are sealed are in
`LogLimits`. A change of this format also changes `docs/log-format.md` and `schema.SCHEMA_VERSION`.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from operator import sub
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary
from zlib import crc32

import zstandard

from jetstream.eventlog.columns import NAMES, Columns, Damaged, read_times, write_times
from jetstream.model.batch import Batch
from jetstream.model.did_set import DidSet
from jetstream.model.filter import COMMITS, Filter

# Decompressed. Far above what one append can hold: a damaged length must not become an allocation.
COLUMN_BYTES_MAX: Final = 1024 * 1024 * 1024

# A segment sets 2,500 of 2^18 bits: one DID in a hundred is a false positive.
DID_BITS: Final = 1 << 18
FILTERS_REMEMBERED: Final = 64  # DID filters of subscribers, as 32 KiB of bits each

# zstd levels. Random text has no real matches: a higher level takes longer and makes it larger. Keys that
# count up in time become a quarter smaller at a level whose parser looks far.
_LEVELS: Final = {"times": 1, "dids": 1, "cids": 1, "rkeys": 15, "revs": 15}
_LEVEL: Final = 9
# A segment that filled this fast belongs to a backlog. It is sealed in a quarter of the time, and is 7 %
# larger.
SURGE_US: Final = 500_000
_SURGE_LEVEL: Final = 2


class _Thread(threading.local):
    """What each thread has for itself: creating a decompressor takes longer than using it."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()


_thread: Final = _Thread()
# The Bloom filters of large lists of DIDs.
_lists: Final = WeakKeyDictionary[DidSet, int]()


class Segment(NamedTuple):
    """A segment as it is stored: its range, its index and its columns, all compressed.

    The fields are the columns of the table `segment` of SQLite, in its order.
    """

    last_us: int  # at or above the last event's time: events at the end may have been erased
    # The position of the first event when it was sealed or rewritten, and the number of events.
    first_us: int
    events: int
    # The index, and then the columns. Each is one zstd frame: see the head of this module.
    collection_set: bytes
    did_bits: bytes
    accounts: bytes
    times: bytes
    kinds: bytes
    dids: bytes
    collections: bytes
    rkeys: bytes
    revs: bytes
    cids: bytes
    bodies: bytes

    @property
    def size(self) -> int:
        """The compressed size in bytes."""
        return sum(map(len, self[3:]))


def seal(columns: Columns, last_us: int) -> Segment:
    """Compress the log's next events, up to position `last_us`, into a segment.

    There is at least one event. `last_us` is the end of the last row: it may be above the last event.
    """
    times = read_times(columns.times)
    parts = (*_index(columns), _differences(times), *columns[1:])
    highest = _SURGE_LEVEL if times[-1] - times[0] < SURGE_US else zstandard.MAX_COMPRESSION_LEVEL
    levels = [min(_LEVELS.get(name, _LEVEL), highest) for name in Segment._fields[3:]]
    return Segment(last_us, times[0], len(times), *map(compress, parts, levels))


def verify(segment: Segment) -> None:
    """Raise Damaged unless the range and the index of a segment are those of its events.

    Decompresses every column and makes the index again, so it is for checks and not for readers.
    """
    batch = unseal(segment.events, segment.times, [getattr(segment, name) for name in NAMES])
    if not segment.first_us <= batch.first <= batch.last <= segment.last_us:
        raise Damaged(f"events from {batch.first} to {batch.last} are outside its range")
    index = tuple(map(decompress, (segment.collection_set, segment.did_bits, segment.accounts)))
    if index != _index(Columns.of(batch)):
        raise Damaged("its index of collections, DIDs or accounts is not that of its events")


def unseal(events: int, times: bytes, texts: Iterable[bytes]) -> Batch:
    """Decompress the columns of a segment with this number of events. Raises Damaged.

    `texts` are the columns after `times`, in the order of `columns.NAMES`.
    """
    columns = [decompress(text).split(b"\n") for text in texts]
    batch = Batch(unpack_times(times), *columns)
    if {len(batch), *map(len, columns)} != {events}:
        raise Damaged(f"columns of other lengths than {events} events")
    return batch


def text_bytes(events: int, texts: Sequence[bytes]) -> int:
    """Return `Batch.text_bytes` of a segment whose columns `unseal` has read: each says how long it is."""
    long = [text for name, text in zip(NAMES, texts, strict=True) if name in ("dids", "rkeys", "bodies")]
    return sum(map(zstandard.frame_content_size, long)) - len(long) * (events - 1)


def unpack_times(packed: bytes) -> list[int]:
    """Decompress the times of a segment alone. Raises Damaged."""
    try:
        return list(accumulate(read_times(decompress(packed))))
    except struct.error as error:
        raise Damaged(str(error)) from error


def with_times(segment: Segment, times: list[int]) -> Segment:
    """Return the segment with other times for its events. Raises Damaged.

    For `rebase`: there is one new time for each event, rising strictly. The copies of events without a
    collection get the new times of their originals; nothing else is compressed again.
    """
    accounts = decompress(segment.accounts)
    if accounts:
        new = dict(zip(unpack_times(segment.times), times, strict=True))
        count = int.from_bytes(accounts[:4], "little")
        own = write_times([new[time] for time in read_times(accounts[4 : 4 + 8 * count])])
        accounts = accounts[:4] + own + accounts[4 + 8 * count :]
    return segment._replace(
        last_us=times[-1],
        first_us=times[0],
        times=compress(_differences(times), _LEVELS["times"]),
        accounts=compress(accounts, _LEVEL),
    )


def unpack_accounts(packed: bytes) -> Columns | None:
    """Decompress the events without a collection alone; None if the segment has none. Raises Damaged."""
    data = decompress(packed)
    return Columns.unpacked(data) if data else None


def holds_collection(collection_set: bytes, wanted: Filter) -> bool:
    """Tell whether a segment has commits of kinds and to collections that may be wanted. Raises Damaged.

    `collection_set` is the compressed column. Events without a collection do not count here. False is
    certain; True may be wrong about the kind or the repo.
    """
    if wanted.kinds and wanted.kinds.isdisjoint(COMMITS):
        return False
    if wanted.every_collection:
        return True
    names = decompress(collection_set).split(b"\n")
    # Full names are looked up in the filter's set; a segment has about a hundred.
    if not wanted.collections.isdisjoint(names):
        return True
    if wanted.collections and not wanted.prefixes:
        return False
    prefixes = tuple(wanted.prefixes) or b""
    return any(name.startswith(prefixes) and wanted.wants_collection(name) for name in filter(None, names))


def may_hold_did(did_bits: bytes, wanted: Filter) -> bool:
    """Tell whether a segment may have events of the DIDs that `wanted` names. False is certain.

    Raises Damaged.

    `did_bits` is the compressed column. One DID in a hundred that a segment does not have passes.
    """
    return bool(int.from_bytes(decompress(did_bits), "little") & _all_bits(wanted))


def holds_did(dids: bytes, wanted: Filter) -> bool:
    """Tell from its DID column whether a segment has events of the DIDs that `wanted` names.

    Raises Damaged.

    Exact, for DIDs that are named and for a list. It decompresses one column, some 30 bytes an event.
    """
    column = decompress(dids).split(b"\n")
    return not (wanted.dids.isdisjoint(column) and wanted.listed.isdisjoint(column))


def compress(data: bytes, level: int = _LEVEL) -> bytes:
    """Compress one column, with a checksum."""
    return zstandard.ZstdCompressor(level=level, write_checksum=True).compress(data)


def decompress(data: bytes, bytes_max: int = COLUMN_BYTES_MAX) -> bytes:
    """Decompress one column. Raises Damaged if it is not a whole zstd frame, or a longer one.

    `bytes_max` is compared with the size that the frame claims, before any memory is taken. `data` may be
    any value of a damaged row.
    """
    try:
        if zstandard.frame_content_size(data) > bytes_max:
            raise Damaged(f"a column of more than {bytes_max} bytes")
        return _thread.decompressor.decompress(data)
    except (zstandard.ZstdError, TypeError, MemoryError) as error:  # TypeError: not even bytes
        raise Damaged(str(error)) from error


def _index(columns: Columns) -> tuple[bytes, bytes, bytes]:
    """Make the index of a segment from its events: its collections, DIDs and accounts."""
    # Sealing shares the GIL with the event loop, so only the columns that the index needs are split.
    dids, collections = columns.dids.split(b"\n"), columns.collections.split(b"\n")
    names = b"\n".join(sorted(set(collections) - {b""}))
    return names, _did_bits(set(dids)), _accounts(columns, dids, collections)


def _accounts(columns: Columns, dids: list[bytes], collections: list[bytes]) -> bytes:
    """Pack copies of the events without a collection, which have no rkey, rev or CID either.

    Their number is in front: see the head of this module. Empty bytes: there are none.
    """
    indices = [i for i, collection in enumerate(collections) if not collection]
    if not indices:
        return b""
    bodies, nothing = columns.bodies.split(b"\n"), [b""] * len(indices)
    kinds = [columns.kinds[2 * i : 2 * i + 1] for i in indices]
    texts = (kinds, [dids[i] for i in indices], *[nothing] * 4, [bodies[i] for i in indices])
    times = b"".join(columns.times[8 * i : 8 * i + 8] for i in indices)
    return Columns(times, *map(b"\n".join, texts)).packed()


def _differences(times: list[int]) -> bytes:
    """Write each time as the difference from the one before: small numbers compress well."""
    return write_times([times[0], *map(sub, times[1:], times)])


def _did_bits(dids: Iterable[bytes]) -> bytes:
    """Make a Bloom filter of some DIDs; see the head of this module."""
    bits = bytearray(DID_BITS // 8)
    for number in map(crc32, dids):
        bits[number % DID_BITS >> 3] |= 1 << (number & 7)
    return bytes(bits)


def _all_bits(wanted: Filter) -> int:
    """Return the Bloom filter of all DIDs that a filter names."""
    return _wanted_bits(wanted.dids) | (_listed_bits(wanted.listed) if wanted.listed else 0)


def _listed_bits(dids: DidSet) -> int:
    """Return that of a list, which is remembered while the list lives: it may take 12 MB."""
    bits = _lists.get(dids)
    if bits is None:
        bits = _lists[dids] = int.from_bytes(_did_bits(dids), "little")
    return bits


@lru_cache(FILTERS_REMEMBERED)
def _wanted_bits(dids: frozenset[bytes]) -> int:
    """Return the Bloom filter of a subscriber's DIDs as one number, so that one `&` tests all of them."""
    return int.from_bytes(_did_bits(dids), "little")
