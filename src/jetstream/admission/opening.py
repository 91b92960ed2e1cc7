"""Opens an `Admission` with all that it uses: keys, processes that examine, what is known of accounts.

    settings ─▶ Rules ─┬─▶ Keys        the file of keys, requests to directories
                       ├─▶ Examiners   the processes of --verify-workers
    log ───────────────┼─▶ Accounts    rows of the log
                       └─▶ Identities, Deletions   events of the last minutes

All of it is closed in reverse order. The log and the metrics are the server's, and stay open.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NamedTuple

from jetstream.admission.accounts import Accounts, told
from jetstream.admission.admission import Admission
from jetstream.admission.deletions import Deletions
from jetstream.admission.examiners.pool import Examiners
from jetstream.admission.identities import Identities
from jetstream.admission.keys import Keys, KeySettings
from jetstream.admission.message import is_deletion
from jetstream.admission.parts import Append, Keyring, Parts
from jetstream.admission.rules import Rules
from jetstream.conditions import Conditions
from jetstream.eventlog import LoadsAhead, LogWriter, ReadWriteLog
from jetstream.limits import AdmissionLimits, Limits
from jetstream.metrics import Metrics
from jetstream.model.event import ACCOUNT, IDENTITY
from jetstream.model.filter import Filter
from jetstream.settings import Settings
from jetstream.upstreams import Upstream
from jetstream.verify.verdict import REFUSALS, VERDICTS

_UNSIGNED: Final = Filter(kinds=frozenset({IDENTITY, ACCOUNT}))


class Server(NamedTuple):
    """What an admission has of the server, which outlives it."""

    # Also read once at the start (`recent`).
    log: ReadWriteLog
    # Stamps and stores events: `Ingest.admit`.
    append: Append
    metrics: Metrics
    conditions: Conditions
    # Returns the names of the sources that have a connection.
    connected: Callable[[], Collection[str]]
    # Unix microseconds, by the clock that stamps events.
    now_us: Callable[[], int]


@asynccontextmanager
async def opened(
    settings: Settings, upstreams: Sequence[Upstream], server: Server, limits: Limits, *, merged: bool
) -> AsyncIterator[Admission]:
    """Open an admission for these upstreams, and close it at the end. `merged`: there may be several.

    Breaks in the chain of a repository are gaps if there are several upstreams or `--verify full` is set.
    Keys are needed for signatures, and to tell which accounts a PDS speaks for: a file of upstreams may
    name one at any time.

    Raises KeyCacheError if the file of keys cannot be used, LogError, and WorkerError if a process cannot
    be started.
    """
    chained = merged or settings.verify == "full"
    rules = Rules(
        settings.verify,
        chained=chained,
        pass_unverified=settings.unresolved == "pass",
        pass_unproven=settings.unproven == "pass",
    )
    async with AsyncExitStack() as stack:
        keys: Keyring | None = None
        if rules.needs_keys or settings.upstream_file is not None:
            keys = await stack.enter_async_context(_keys(settings, server, limits))
        restarts = server.metrics.workers() if settings.verify_workers else None
        examiners = await stack.enter_async_context(
            Examiners(rules.mode, settings.verify_workers, restarts, limits.upstream, limits.workers)
        )
        parts = Parts(
            server.log,
            server.append,
            examiners.examine,
            keys,
            _accounts(upstreams, server.log, limits),
            *await recent(server.log, server.now_us(), limits.admission),
            server.connected,
            server.metrics.admission(VERDICTS, REFUSALS),
            server.conditions,
            server.now_us,
            server.log if isinstance(server.log, LoadsAhead) else None,
        )
        yield Admission(rules, parts, limits)


def _keys(settings: Settings, server: Server, limits: Limits) -> Keys:
    """Return the keys, which are opened as a context manager."""
    where = KeySettings(settings.data_dir, settings.plc_url, settings.plc_rate, settings.follow_plc)
    return Keys(where, server.metrics, server.conditions, limits.keys, limits.export)


async def recent(log: ReadWriteLog, now_us: int, bounds: AdmissionLimits) -> tuple[Identities, Deletions]:
    """Return the identity messages and deletions that the log has of a short time ago. Raises LogError.

    Deletions from before then are known as long as the states of accounts are, however short the
    retention. It reads `identities_window_s` of the log, from its floor at the earliest, before any
    source is read.
    """
    window_us = int(bounds.identities_window_s * 1e6)
    identities, deletions = Identities(window_us, bounds.identities_max), Deletions(bounds.deletions_max)
    for did, body in told(log.accounts()):
        if is_deletion(body):
            deletions.restore(did, body, now_us)
    position, stop = now_us - window_us, log.tip + 1
    while (batch := await log.read(max(position, log.floor), stop, _UNSIGNED)) is not None:
        for i in _UNSIGNED.select(batch, batch.index(position), batch.index(stop)):
            body, time_us = batch.bodies[i], batch.times[i]
            if batch.kinds[i] == IDENTITY:
                identities.remember(body, time_us)
            elif is_deletion(body):
                deletions.restore(batch.dids[i].decode(), body, time_us)
        position = batch.last + 1
    return identities, deletions


def _accounts(upstreams: Sequence[Upstream], log: LogWriter, limits: Limits) -> Accounts:
    """Return the states of accounts as the log has them, with the sources that are in use now."""
    bounds = limits.admission
    return Accounts(
        [each.name for each in upstreams if each.kind == "relay"],
        [each.name for each in upstreams if each.kind == "pds"],
        log.accounts(),
        now=time.monotonic(),
        grace_s=bounds.account_grace_s,
        rows_max=bounds.account_rows_max,
    )
