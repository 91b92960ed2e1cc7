"""The people: accounts that write, come, change and go, one message after the other.

A world is pure: the same seed and the same clock give the same messages, to the last byte of every signature.
`step` lets something happen by chance; the other methods make it happen, for a test that needs it now.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate
from random import Random
from typing import Final

import libipld

from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.keys import K256Key, P256Key, SigningKey
from jetstream.atproto.repo import CREATE, DELETE, OPS_MAX, UPDATE
from jetstream.atproto.tid import CLOCK_IDS, tid
from jetstream.simulator import records
from jetstream.simulator.frames import Account, Commit, Identity, Message, Sync
from jetstream.simulator.records import Author, Draft, Record
from jetstream.simulator.repo import Repo, Write

Clock = Callable[[], int]

RECORDS_MAX: Final = 1_000_000  # in all repositories together: about 700 MB
_INACTIVE: Final = ("takendown", "suspended", "deactivated")
_NOTICES: Final = ("desynchronized", "throttled")  # states in which an account is still active
_PAST_US: Final = 200 * 86_400_000_000  # how old the records are that a world begins with


@dataclass(frozen=True, slots=True)
class Population:
    """How many people there are, and what they do: shares of all happenings."""

    repos: int = 200
    """Accounts at any time; one that is deleted makes room for a new one."""
    records: int = 50
    """Records that each repository begins with."""
    lifecycle: float = 0.01
    """Happenings that are no commits: identities, accounts, syncs."""
    multiple: float = 0.012
    """Commits with more than one operation."""
    deletes: float = 0.03
    """Operations that delete."""
    updates: float = 0.01
    """Operations that update."""


class SteadyClock:
    """A clock that goes on by the same step each time it is read: the time of a repeatable world."""

    def __init__(self, start_us: int, step_us: int) -> None:
        self._now_us = start_us
        self._step_us = step_us

    def __call__(self) -> int:
        """Read the clock: unix microseconds."""
        self._now_us += self._step_us
        return self._now_us


@dataclass(slots=True)
class Person:
    """One account: its names, its repository, and whether it is hosted."""

    did: str
    handle: str
    repo: Repo
    clock_id: int
    active: bool = True
    status: str | None = None
    paths: list[str] = field(default_factory=list)
    last_us: int = 0

    def tid(self, now_us: int) -> str:
        """Take the next TID of this account, above every one before."""
        self.last_us = max(now_us, self.last_us + 1)
        return tid(self.last_us, self.clock_id)


class World:
    """Accounts and what becomes of them. `people` holds the departed too, `present` those who live here."""

    def __init__(self, population: Population, seed: int, clock: Clock) -> None:
        if population.repos < 1:
            raise ValueError(f"a world needs at least one repo, not {population.repos}")
        self.population = population
        self.people: dict[str, Person] = {}
        self.present: list[Person] = []
        self._clock = clock
        self._rng = Random(seed)  # noqa: S311 - repeatable is what it must be
        self._author = Author(self._rng)
        self._records = 0
        self._records_max = max(RECORDS_MAX, 2 * population.repos * population.records)
        # Popularity: the n-th account writes about 1/n of what the first one does.
        weights = accumulate(1 / (n + 1) ** 0.9 for n in range(population.repos))
        self._weights = list(weights)
        now_us = clock()
        for _ in range(population.repos):
            self.present.append(self._settle(now_us))

    def step(self) -> list[Message]:
        """Let one thing happen: mostly a commit, at times something in an account's life."""
        if self._records > self._records_max:
            return self.replace(max(self.present, key=lambda person: len(person.paths)).did)
        if self._rng.random() < self.population.lifecycle:
            return self._live()
        return [self._write_something(self._pick())]

    def messages(self) -> Iterator[Message]:
        """Let things happen for ever."""
        while True:
            yield from self.step()

    def write(self, did: str, writes: Sequence[tuple[str, str, str, Record | None]]) -> Commit:
        """Commit writes of the form (action, collection, rkey, record) to one repository.

        Raises ValueError for an unknown account, an action that does not fit what is there, repeated paths,
        or more than 200 writes.
        """
        person = self._person(did)
        made = [
            Write(action, f"{collection}/{rkey}", record, b"" if record is None else encode_cbor(record))
            for action, collection, rkey, record in writes
        ]
        _check_writes(person, made)
        return self._commit(person, made, self._clock())

    def create_record(self, did: str, collection: str, record: Record, rkey: str | None = None) -> Commit:
        """Commit one new record, under the time of writing unless a key is given."""
        key = rkey or self._person(did).tid(self._clock())
        return self.write(did, [(CREATE, collection, key, record)])

    def write_block(self, did: str, collection: str, block: bytes) -> Commit:
        """Commit a record that is given as CBOR, for those that cannot be had any other way."""
        person, now_us = self._person(did), self._clock()
        path = f"{collection}/{person.tid(now_us)}"
        return self._commit(person, [Write(CREATE, path, None, block)], now_us)

    def identify(self, did: str, handle: str | None = None) -> Identity:
        """Announce an identity, with or without its handle; a handle given becomes the account's."""
        person = self._person(did)
        person.handle = handle or person.handle
        return Identity(did, self._time(), handle)

    def set_status(self, did: str, *, active: bool, status: str | None) -> list[Message]:
        """Announce an account's hosting. One that becomes active again is identified and synced as well."""
        person = self._person(did)
        returns = active and not person.active
        person.active, person.status = active, status
        account = Account(did, self._time(), active, status)
        return [account, self.identify(did, person.handle), self.sync(did)] if returns else [account]

    def rotate_key(self, did: str) -> list[Message]:
        """Give an account a new signing key: an identity without a handle, then its commit signed anew."""
        person = self._person(did)
        now_us = self._clock()
        key = self._new_key()
        commit = person.repo.resign(key, person.tid(now_us))
        time = records.datetime_of(now_us)
        rev = person.repo.rev or ""
        return [Identity(did, time, None), Sync(did, time, rev, commit)]

    def sync(self, did: str) -> Sync:
        """State where a repository is."""
        person = self._person(did)
        assert person.repo.head is not None, "an account settles with a commit"
        return Sync(did, self._time(), person.repo.rev or "", person.repo.head)

    def replace(self, did: str) -> list[Message]:
        """Delete an account and let a new one move in, with the messages that a server sends for both."""
        leaving = self._person(did)
        now_us = self._clock()
        time = records.datetime_of(now_us)
        leaving.active, leaving.status = False, "deleted"
        self._records -= len(leaving.paths)
        leaving.paths.clear()
        leaving.repo = Repo(did, leaving.repo.key)
        coming = self._settle(now_us, records_count=0)
        self.present[self.present.index(leaving)] = coming
        profile = self._author.profile(now_us)
        commit = self._commit(coming, [_created(coming, profile, now_us)], now_us)
        return [
            Account(did, time, active=False, status="deleted"),
            Identity(coming.did, time, coming.handle),
            Account(coming.did, time, active=True, status=None),
            commit,
            self.sync(coming.did),
        ]

    def document(self, did: str, pds: str) -> dict[str, object] | None:
        """Write the DID document of an account that lives or lived here, None of any other."""
        person = self.people.get(did)
        return None if person is None else did_document(did, person.handle, person.repo.key, pds)

    def _live(self) -> list[Message]:
        """Let something happen that is no commit. The shares follow what relays report."""
        person = self._rng.choice(self.present)
        pick = self._rng.random()
        if pick < 0.45:
            return [self.identify(person.did, person.handle if pick < 0.15 else None)]
        if pick < 0.55:
            return [self.identify(person.did, self._new_handle())]
        if pick < 0.63:
            return [self.sync(person.did)]
        if pick < 0.68:
            return self.rotate_key(person.did)
        if pick < 0.72:
            return self.replace(person.did)
        return self._change_status(person)

    def _change_status(self, person: Person) -> list[Message]:
        if not person.active or person.status is not None:
            return self.set_status(person.did, active=True, status=None)
        pick = self._rng.random()
        if pick < 0.3:
            return self.set_status(person.did, active=True, status=None)
        if pick < 0.5 or sum(other.active for other in self.present) < 1 + len(self.present) // 2:
            return self.set_status(person.did, active=True, status=self._rng.choice(_NOTICES))
        return self.set_status(person.did, active=False, status=self._rng.choice(_INACTIVE))

    def _pick(self) -> Person:
        """Choose who writes: the popular often, the inactive never. At least half are active, see above."""
        while True:
            place = bisect(self._weights, self._rng.random() * self._weights[-1])
            person = self.present[min(place, len(self.present) - 1)]
            if person.active:
                return person

    def _write_something(self, person: Person) -> Commit:
        now_us = self._clock()
        count = 1 if self._rng.random() >= self.population.multiple else self._ops_count()
        writes: dict[str, Write] = {}
        for _ in range(count):
            write = self._one_write(person, now_us)
            writes.setdefault(write.path, write)
        return self._commit(person, list(writes.values()), now_us)

    def _ops_count(self) -> int:
        """Choose how many operations: mostly 2 to 5, at times none at all, rarely as many as are allowed."""
        pick = self._rng.random()
        if pick < 0.02:
            return 0
        return self._rng.randrange(2, 6) if pick < 0.98 else self._rng.randrange(6, OPS_MAX + 1)

    def _one_write(self, person: Person, now_us: int) -> Write:
        pick = self._rng.random()
        if pick < self.population.deletes and person.paths:
            return Write(DELETE, self._rng.choice(person.paths), None, b"")
        if pick < self.population.deletes + self.population.updates:
            draft = self._author.singleton(person.did, now_us)
        else:
            draft = self._author.new(now_us)
        return _created(person, draft, now_us)

    def _commit(self, person: Person, writes: list[Write], now_us: int) -> Commit:
        revision = person.repo.apply(writes, person.tid(now_us))
        for op in revision.ops:
            if op.action == CREATE:
                person.paths.append(op.path)
                self._records += 1
                if op.path.startswith(records.POST) and op.cid is not None:
                    self._author.remember(f"at://{person.did}/{op.path}", op.cid)
            elif op.action == DELETE:
                person.paths.remove(op.path)
                self._records -= 1
        return Commit(person.did, records.datetime_of(now_us), revision)

    def _settle(self, now_us: int, records_count: int | None = None) -> Person:
        """Let a new account move in, with the records that the population says it brings along."""
        key = self._new_key()
        handle = self._new_handle()
        did = self._new_did(key, handle)
        person = Person(did, handle, Repo(did, key), self._rng.randrange(CLOCK_IDS))
        count = self.population.records if records_count is None else records_count
        if count:
            self._bring_along(person, count, now_us)
        self.people[did] = person
        return person

    def _bring_along(self, person: Person, count: int, now_us: int) -> None:
        brought: dict[str, bytes] = {}
        for age_us in sorted((self._rng.randrange(1, _PAST_US) for _ in range(count)), reverse=True):
            draft = self._author.new(now_us - age_us) if brought else self._author.profile(now_us - age_us)
            write = _created(person, draft, now_us - age_us)
            brought[write.path] = write.block
        person.paths = list(brought)
        self._records += len(brought)
        person.repo.fill(brought.items(), person.tid(now_us))

    def _new_key(self) -> SigningKey:
        secret = self._rng.randbytes(32)
        return P256Key(secret) if self._rng.random() < 0.05 else K256Key(secret)

    def _new_handle(self) -> str:
        return f"u{self._rng.getrandbits(40):x}.{self._rng.choice(_DOMAINS)}"

    def _new_did(self, key: SigningKey, handle: str) -> str:
        if self._rng.random() < 0.01:
            return f"did:web:{handle}"
        return plc_did_of(key)

    def _person(self, did: str) -> Person:
        person = self.people.get(did)
        if person is None or person.status == "deleted":
            raise ValueError(f"{did} does not live in this world")
        return person

    def _time(self) -> str:
        return records.datetime_of(self._clock())


_DOMAINS: Final = ("social.test", "pds.test", "handles.example.com")


def plc_did_of(key: SigningKey) -> str:
    """Name an account after its first key: 24 characters of base 32, as `did:plc` names are."""
    digest = sha256(key.multibase.encode()).digest()[:15]
    return "did:plc:" + libipld.encode_multibase("b", digest)[1:]


def did_document(did: str, handle: str, key: SigningKey, pds: str) -> dict[str, object]:
    """Write a DID document as the directory serves it."""
    return {
        "@context": ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"],
        "id": did,
        "alsoKnownAs": [f"at://{handle}"],
        "verificationMethod": [
            {
                "id": f"{did}#atproto",
                "type": "Multikey",
                "controller": did,
                "publicKeyMultibase": key.multibase,
            }
        ],
        "service": [
            {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": pds},
        ],
    }


def _created(person: Person, draft: Draft, now_us: int) -> Write:
    """Make a draft a write: a create, or an update of what is there under its key."""
    path = f"{draft.collection}/{draft.rkey or person.tid(now_us)}"
    action = UPDATE if path in person.repo.records else CREATE
    return Write(action, path, draft.record, encode_cbor(draft.record))


def _check_writes(person: Person, writes: list[Write]) -> None:
    if len(writes) > OPS_MAX or len({write.path for write in writes}) < len(writes):
        raise ValueError(f"a commit takes at most {OPS_MAX} writes, each to another path")
    for write in writes:
        if (write.path in person.repo.records) == (write.action == CREATE):
            raise ValueError(f"{write.action} of {write.path} does not fit what {person.did} has")
