from __future__ import annotations

from jetstream.eventlog.erase import find_tombstones, without_erased
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, SYNC, Event


def account(did: bytes, body: bytes) -> Event:
    return Event(ACCOUNT, did, b"", b"", b"", b"", body)


def of(did: bytes, kind: bytes = CREATE) -> Event:
    return Event(kind, did, b"a.b.c", b"k", b"r", b"", b"{}")


def test_only_an_inactive_account_of_a_given_status_is_gone() -> None:
    batch = Batch.of(
        [
            account(b"did:a:1", b'{"active":false,"status":"deleted"}'),
            account(b"did:a:2", b'{"active":false,"status":"takendown"}'),
            account(b"did:a:3", b'{"active":true,"status":"deleted"}'),
            account(b"did:a:4", b'{"active":false}'),
            of(b"did:a:5"),
        ],
        range(10, 15),
    )
    assert find_tombstones(batch, {"deleted"}) == {b"did:a:1": 10}
    assert find_tombstones(batch, {"deleted", "takendown"}) == {b"did:a:1": 10, b"did:a:2": 11}
    assert find_tombstones(batch, frozenset()) == {}


def test_the_last_deletion_counts() -> None:
    body = b'{"active":false,"status":"deleted"}'
    batch = Batch.of([account(b"did:a:1", body), of(b"did:a:1"), account(b"did:a:1", body)], [1, 2, 3])
    assert find_tombstones(batch, {"deleted"}) == {b"did:a:1": 3}


def test_records_before_the_deletion_go_and_all_else_stays() -> None:
    did, other = b"did:a:1", b"did:a:2"
    identity = Event(IDENTITY, did, b"", b"", b"", b"", b"{}")
    batch = Batch.of(
        [of(did), of(other), of(did, DELETE), identity, account(did, b"{}"), of(did)], [1, 2, 3, 4, 5, 6]
    )
    kept = without_erased(batch, {did: 5})
    assert kept is not None
    assert kept.times == [2, 3, 4, 5, 6]
    assert kept.event(0) == of(other)


def test_syncs_before_the_deletion_go() -> None:
    gone, other = (Event(SYNC, did, b"", b"", b"", b"", b"{}") for did in (b"did:a:1", b"did:a:2"))
    kept = without_erased(Batch.of([gone, other, gone], [1, 2, 3]), {b"did:a:1": 2})
    assert kept is not None
    assert (kept.times, kept.event(0)) == ([2, 3], other)


def test_a_batch_that_loses_nothing_is_left_as_it_is() -> None:
    assert without_erased(Batch.of([of(b"did:a:1")], [7]), {b"did:a:2": 9}) is None
    assert without_erased(Batch.of([of(b"did:a:1")], [7]), {b"did:a:1": 7}) is None
