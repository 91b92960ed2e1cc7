"""The states of repositories as the log stores them: records of 40 bytes, of a DID and its state. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

# A state as `verify.chain.State.packed` writes it: 8 bytes of the rev, 16 of the root's hash.
STATE_BYTES: Final = 24
# A compact DID has 15 bytes if it is a `did:plc`, else 16: see `atproto.compact_did`.
DID_BYTES: Final = 16
RECORD_BYTES: Final = DID_BYTES + STATE_BYTES
# The state in the record of a repository that was forgotten.
_FORGOTTEN: Final = bytes(STATE_BYTES)

Repos = Mapping[bytes, bytes | None]  # by compact DID; None: forgotten
Change = tuple[bytes, bytes | None]


def pack(repos: Repos) -> bytes:
    """Return changes as records of `RECORD_BYTES`.

    They are in the order of the mapping. A DID of 15 bytes gets a zero in front. The bytes have no
    checksum of their own: the row or the journal's entry that holds them has one.
    """
    records = b"".join([did.rjust(DID_BYTES, b"\0") + (state or _FORGOTTEN) for did, state in repos.items()])
    assert len(records) == RECORD_BYTES * len(repos), "DIDs are compact, and states have their size"
    return records


def records_of(records: bytes) -> Iterator[Change]:
    """Yield the changes of whole records.

    The reverse of `pack`. The caller has checked that the length is a multiple of `RECORD_BYTES`.
    """
    for start in range(0, len(records), RECORD_BYTES):
        did, state = records[start : start + DID_BYTES], records[start + DID_BYTES : start + RECORD_BYTES]
        # The 16 bytes of a DID that is no `did:plc` begin with a 1.
        yield did if did[0] else did[1:], None if state == _FORGOTTEN else state


def in_steps(repos: Repos, size: int) -> list[list[Change]]:
    """Return changes in the order of their keys, in lists of `size`; the last one may be shorter.

    By the first byte at first: one sort of all would hold the GIL for too long.
    """
    parts: list[list[Change]] = [[] for _ in range(256)]
    for change in repos.items():
        parts[change[0][0]].append(change)
    ordered: list[Change] = []
    for part in parts:
        part.sort()
        ordered += part
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
