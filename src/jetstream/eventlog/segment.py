"""A sealed block: some thousand events as compressed columns, with what is needed to skip it unread.

    times                            differences as 8 bytes each; the first is the first event's time   zstd
    kinds … bodies                   the values with a newline between any two, see `columns`           zstd
    collection_set                   the block's collections, sorted, a newline between any two         zstd
    did_bits                         2^18 bits; bit crc32(DID) mod 2^18 is set for each of its DIDs     zstd
    accounts                         its identity and account events once more: their number as 4
                                     bytes, then their columns as in the tail, with a NUL between texts  zstd

Every zstd frame carries a checksum: nothing damaged is taken for an event, or for a reason to skip one.
Identity and account events are wanted whatever the collections of a filter are, and nearly every block has
some: their copies, under 1 % of the bytes, save reading whole blocks for a collection that is not there.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate
from operator import sub
from typing import Final, NamedTuple
from zlib import crc32

import zstandard

from jetstream.eventlog.columns import NAMES, Columns, Damaged, read_times, write_times
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, IDENTITY
from jetstream.model.filter import Filter

# Larger blocks take 2 % less room and twice the time for one event of one of them.
BLOCK_EVENTS: Final = 4_000
# Ordinary bodies take 2 MiB; large records make smaller blocks, so that one is decoded in bounded memory.
BLOCK_BYTES: Final = 8 * 1024 * 1024
# Far above what one append can hold: a damaged length must not become an allocation.
COLUMN_BYTES_MAX: Final = 1024 * 1024 * 1024

# 2,500 of 2^18 bits are set: one DID in a hundred is looked for in a block in vain.
DID_BITS: Final = 1 << 18
FILTERS_REMEMBERED: Final = 64  # of 32 KiB each

# Random text only takes longer and more room at a higher level: there are no true matches to be found. Keys
# that count up in time take a quarter less at a level whose parser looks far.
_LEVELS: Final = {"times": 1, "dids": 1, "cids": 1, "rkeys": 15, "revs": 15}
_LEVEL: Final = 9
# A block that filled this fast is one of a backlog: a quarter of the time, for 7 % more room.
SURGE_US: Final = 500_000
_SURGE_LEVEL: Final = 2

_ACCOUNT_KINDS: Final = re.compile(b"[%b%b]" % (IDENTITY, ACCOUNT))

_thread: Final = threading.local()


class Index(NamedTuple):
    """What lets a reader skip a block, uncompressed."""

    collection_set: bytes
    did_bits: bytes
    accounts: bytes


class Block(NamedTuple):
    """A block as it is stored."""

    last_us: int
    first_us: int
    events: int
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
        """How many bytes it takes."""
        return sum(map(len, self[3:]))


def seal(columns: Columns, last_us: int) -> Block:
    """Compress events that are, in order, the log's next ones up to `last_us`."""
    times = read_times(columns.times)
    parts = {**_index(columns)._asdict(), **columns._asdict(), "times": _differences(times)}
    surge = times[-1] - times[0] < SURGE_US
    packed = {name: compress(part, _level(name, surge)) for name, part in parts.items()}
    return Block(last_us, times[0], len(times), **packed)


def _level(name: str, surge: bool) -> int:
    level = _LEVELS.get(name, _LEVEL)
    return min(level, _SURGE_LEVEL) if surge else level


def verify(block: Block) -> None:
    """Raise Damaged unless a block is, in all its parts, what its events make it."""
    batch = unseal(block.events, block.times, [getattr(block, name) for name in NAMES])
    if not block.first_us <= batch.first <= batch.last <= block.last_us:
        raise Damaged(f"events from {batch.first} to {batch.last} are outside its range")
    stored = Index(*map(decompress, (block.collection_set, block.did_bits, block.accounts)))
    if stored != _index(Columns.of(batch)):
        raise Damaged("what it says of its collections, DIDs or accounts is not so")


def unseal(events: int, times: bytes, texts: Iterable[bytes]) -> Batch:
    """Read a block's columns. Raises Damaged."""
    columns = [decompress(text).split(b"\n") for text in texts]
    batch = Batch(_from_differences(decompress(times)), *columns)
    if {len(batch), *map(len, columns)} != {events}:
        raise Damaged(f"columns of other lengths than {events} events")
    return batch


def block_times(packed: bytes) -> list[int]:
    """Read a block's times alone. Raises Damaged."""
    return _from_differences(decompress(packed))


def retimed(block: Block, times: list[int]) -> Block:
    """Return a block with other times for its events. Raises Damaged."""
    accounts = decompress(block.accounts)
    if accounts:
        old = dict(zip(block_times(block.times), times, strict=True))
        count = int.from_bytes(accounts[:4], "little")
        own = write_times([old[time] for time in read_times(accounts[4 : 4 + 8 * count])])
        accounts = accounts[:4] + own + accounts[4 + 8 * count :]
    return block._replace(
        last_us=times[-1],
        first_us=times[0],
        times=compress(_differences(times), _LEVELS["times"]),
        accounts=compress(accounts, _LEVEL),
    )


def unpack_accounts(packed: bytes) -> Columns | None:
    """Read a block's identity and account events alone; None if it has none."""
    data = decompress(packed)
    if not data:
        return None
    count = int.from_bytes(data[:4], "little")
    times, *texts = data[4 : 4 + 8 * count], *data[4 + 8 * count :].split(b"\0")
    if len(times) != 8 * count or len(texts) != len(NAMES):
        raise Damaged("its identity and account events are cut")
    return Columns(times, *texts)


def holds_collection(collection_set: bytes, wanted: Filter) -> bool:
    """Tell whether a block has commits to a collection that `wanted` names."""
    if wanted.every_collection:
        return True
    names = decompress(collection_set).split(b"\n")
    # Names by themselves are looked up, not compared: a block has some hundred.
    if not wanted.collections.isdisjoint(names):
        return True
    prefixes = tuple(wanted.prefixes)
    return bool(prefixes) and any(name.startswith(prefixes) for name in names)


def may_hold_did(did_bits: bytes, wanted: Filter) -> bool:
    """Tell whether a block may have events of the DIDs that `wanted` names. No is certain."""
    return bool(int.from_bytes(decompress(did_bits), "little") & _wanted_bits(wanted.dids))


def holds_did(dids: bytes, wanted: Filter) -> bool:
    """Tell whether a block has events of the DIDs that `wanted` names, from its column of DIDs."""
    return not wanted.dids.isdisjoint(decompress(dids).split(b"\n"))


def compress(data: bytes, level: int = _LEVEL) -> bytes:
    """Compress one part of a block."""
    return zstandard.ZstdCompressor(level=level, write_checksum=True).compress(data)


def decompress(data: bytes) -> bytes:
    """Give back what was compressed. Raises Damaged when it is not that."""
    try:
        if zstandard.frame_content_size(data) > COLUMN_BYTES_MAX:
            raise Damaged(f"a column of more than {COLUMN_BYTES_MAX} bytes")
        return _decompressor().decompress(data)
    except (zstandard.ZstdError, TypeError, MemoryError) as error:  # TypeError: not even bytes
        raise Damaged(str(error)) from error


def _decompressor() -> zstandard.ZstdDecompressor:
    """Return this thread's own: making one takes longer than a small frame does."""
    made: zstandard.ZstdDecompressor | None = getattr(_thread, "decompressor", None)
    if made is None:
        made = _thread.decompressor = zstandard.ZstdDecompressor()
    return made


def _index(columns: Columns) -> Index:
    # Sealing shares the interpreter with the event loop: no column is taken apart that need not be.
    dids, collections = columns.dids.split(b"\n"), columns.collections.split(b"\n")
    return Index(b"\n".join(sorted(set(collections) - {b""})), _did_bits(set(dids)), _accounts(columns, dids))


def _accounts(columns: Columns, dids: list[bytes]) -> bytes:
    """Pack the identity and account events, which have no collection, rkey, rev or CID."""
    indices = [match.start() // 2 for match in _ACCOUNT_KINDS.finditer(columns.kinds)]
    if not indices:
        return b""
    bodies, nothing = columns.bodies.split(b"\n"), [b""] * len(indices)
    kinds = [columns.kinds[2 * i : 2 * i + 1] for i in indices]
    texts = (kinds, [dids[i] for i in indices], *[nothing] * 4, [bodies[i] for i in indices])
    times = b"".join(columns.times[8 * i : 8 * i + 8] for i in indices)
    return len(indices).to_bytes(4, "little") + times + b"\0".join(map(b"\n".join, texts))


def _differences(times: list[int]) -> bytes:
    return write_times([times[0], *map(sub, times[1:], times)])


def _from_differences(data: bytes) -> list[int]:
    try:
        return list(accumulate(read_times(data)))
    except ValueError as error:
        raise Damaged(str(error)) from error


def _did_bits(dids: Iterable[bytes]) -> bytes:
    bits = bytearray(DID_BITS // 8)
    for number in map(crc32, dids):
        bits[number % DID_BITS >> 3] |= 1 << (number & 7)
    return bytes(bits)


@lru_cache(FILTERS_REMEMBERED)
def _wanted_bits(dids: frozenset[bytes]) -> int:
    return int.from_bytes(_did_bits(dids), "little")
