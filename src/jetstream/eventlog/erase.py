"""Which records are erased when an account is deleted or taken down.

Pure: these functions take and return batches. The store and the hot tail call them; `sqlite/rewrite.py`
rewrites the file.

A *tombstone* is a DID and a position: records that the DID created or updated before that position are
erased. So are its syncs, whose blocks are of a repository that is gone. Deletes (which hold no record),
identity events and account events stay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import orjson

from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, SYNC, UPDATE

Tombstones = Mapping[bytes, int]  # by DID: the position of the account event, in microseconds


def find_tombstones(batch: Batch, statuses: Collection[str]) -> dict[bytes, int]:
    """Return a tombstone for each account that became inactive with one of `statuses`.

    The position is that of the account event, so records that the account writes after it stay. Of
    several events of one account, the last one counts. Called for every append: most batches have no
    account event, and cost one search in the column of kinds.
    """
    if not statuses or ACCOUNT not in batch.kinds:
        return {}
    return {
        batch.dids[i]: batch.times[i]
        for i, kind in enumerate(batch.kinds)
        if kind == ACCOUNT and _ends_account(batch.bodies[i], statuses)
    }


def without_erased(batch: Batch, tombstones: Tombstones) -> Batch | None:
    """Return a copy of the batch without erased records, which may be empty; None if none is erased.

    The batch itself is never changed: other readers share it. Called by the hot tails, by what reads a
    log that another process writes, and by `rewrite`.
    """
    if tombstones.keys().isdisjoint(batch.dids):
        return None
    kept = [i for i in range(len(batch)) if not _is_erased(batch, i, tombstones)]
    if len(kept) == len(batch):
        return None
    return batch.picked(kept)


def _ends_account(body: bytes, statuses: Collection[str]) -> bool:
    """Tell from the JSON of an account event whether it ends the account with one of these statuses."""
    account = orjson.loads(body)
    return account.get("active") is False and account.get("status") in statuses


def _is_erased(batch: Batch, index: int, tombstones: Tombstones) -> bool:
    """Tell whether a tombstone covers an event: its DID, a kind that holds content, and a lower position."""
    erasable = batch.kinds[index] in (CREATE, UPDATE, SYNC)
    return erasable and batch.times[index] < tombstones.get(batch.dids[index], 0)
