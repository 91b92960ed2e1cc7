"""What a server that starts knows of the messages before it: identities and deletions, from the log."""

from __future__ import annotations

import orjson
from tests.signed import DID, START_US, TIME, rev

from jetstream.admission.deletions import Deletions
from jetstream.admission.opening import recent
from jetstream.eventlog import Changes
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import AdmissionLimits
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, IDENTITY, Event

MINUTE_US = 60_000_000
BOUNDS = AdmissionLimits(identities_window_s=600.0)


def event(kind: bytes, did: str, **fields: object) -> Event:
    body = orjson.dumps({"did": did, "seq": 1, "time": TIME, **fields})
    return Event(kind, did.encode(), b"", b"", b"", b"", body)


async def test_identities_and_deletions_are_read_from_the_log(log: SqliteLog) -> None:
    known = event(IDENTITY, DID)
    minutes = {
        1: event(ACCOUNT, "did:web:long.ago", active=False, status="deleted"),
        12: known,
        13: event(ACCOUNT, "did:web:gone", active=False, status="deleted"),
        14: event(ACCOUNT, "did:web:hidden", active=False, status="takendown"),
    }
    times = [START_US + minute * MINUTE_US for minute in minutes]
    for time_us, each in zip(times, minutes.values(), strict=True):
        await log.append(Batch.of([each], [time_us]), Changes({}))
    identities, deletions = await recent(log, START_US + 15 * MINUTE_US, BOUNDS)
    assert not identities.passes(known.body, START_US + 15 * MINUTE_US)
    gone = {did for did in ("long.ago", "gone", "hidden") if is_before(deletions, f"did:web:{did}")}
    assert gone == {"gone"}


async def test_deletions_that_retention_has_removed_are_known_from_the_states_of_accounts(
    log: SqliteLog,
) -> None:
    """A source that is behind sends the account's commits again, which the log does not hold any more."""
    bodies = {
        "gone": event(ACCOUNT, "did:web:gone", active=False, status="deleted").body,
        "hidden": event(ACCOUNT, "did:web:hidden", active=False, status="takendown").body,
    }
    told = {("", f"did:web:{name}"): b"a\0b\0" + body for name, body in bodies.items()}
    said = {("b", "did:web:other"): bodies["gone"]}  # only one source says so, and it does not decide
    await log.append(Batch.of([], []), Changes({}, accounts={**told, **said}))
    _, deletions = await recent(log, START_US + 60 * MINUTE_US, BOUNDS)
    gone = {did for did in ("gone", "hidden", "other") if is_before(deletions, f"did:web:{did}")}
    assert gone == {"gone"}


def is_before(deletions: Deletions, did: str) -> bool:
    return deletions.is_from_before(did, rev(-1), begins=True)
