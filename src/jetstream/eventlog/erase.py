"""Which records must go when an account goes: pure, over batches."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import orjson

from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, UPDATE


def gone_accounts(batch: Batch, statuses: Collection[str]) -> dict[bytes, int]:
    """Return the repos whose account became inactive with one of `statuses`, and when (`time_us`)."""
    if not statuses or ACCOUNT not in batch.kinds:
        return {}
    return {
        batch.dids[i]: batch.times[i]
        for i, kind in enumerate(batch.kinds)
        if kind == ACCOUNT and _is_gone(batch.bodies[i], statuses)
    }


def without(batch: Batch, gone: Mapping[bytes, int]) -> Batch | None:
    """Return the batch without the records these repos made before they went; None if it has none."""
    if gone.keys().isdisjoint(batch.dids):
        return None
    kept = [i for i in range(len(batch)) if not _is_forgotten(batch, i, gone)]
    if len(kept) == len(batch):
        return None
    return Batch.of([batch.event(i) for i in kept], [batch.times[i] for i in kept])


def _is_gone(body: bytes, statuses: Collection[str]) -> bool:
    account = orjson.loads(body)
    return account.get("active") is False and account.get("status") in statuses


def _is_forgotten(batch: Batch, index: int, gone: Mapping[bytes, int]) -> bool:
    kind = batch.kinds[index]
    return (kind == CREATE or kind == UPDATE) and batch.times[index] < gone.get(batch.dids[index], 0)
