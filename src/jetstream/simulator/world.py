"""The accounts of a simulated network, and what they do, as a sequence of messages.

A world is pure: the same seed and the same clock make the same messages, including every signature. `step`
makes something happen by chance; the other methods let a test make it happen.
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
from jetstream.atproto.tid import CLOCK_IDS, tid
from jetstream.simulator import records
from jetstream.simulator.frames import Account, Commit, Identity, Message, Sync
from jetstream.simulator.records import Author, Draft, Record
from jetstream.simulator.repo import CREATE, DELETE, OPS_MAX, UPDATE, Repo, Write
from jetstream.simulator.signing import K256Key, P256Key, SigningKey

Clock = Callable[[], int]

RECORDS_MAX: Final = 1_000_000  # in all repositories: about 700 MB of memory
_INACTIVE: Final = ("takendown", "suspended", "deactivated")
_ACTIVE: Final = ("desynchronized", "throttled")  # statuses in which an account is still active
_PAST_US: Final = 200 * 86_400_000_000  # the age of the oldest record of a new world


@dataclass(frozen=True, slots=True)
class Population:
    """The number of accounts, and the shares of what they do."""

    repos: int = 200
    """Accounts at any time: a deleted one is replaced by a new one."""
    records: int = 50
    """Records of each repository at the beginning."""
    lifecycle: float = 0.01
    """Share of steps that are not commits: identities, accounts, syncs."""
    multiple: float = 0.012
    """Share of commits with more than one operation."""
    deletes: float = 0.03
    """Share of operations that delete."""
    updates: float = 0.01
    """Share of operations that update."""
    records_max: int = RECORDS_MAX
    """Records in all repositories, above which the largest account is replaced. It is raised for a world that
    begins with more than half as many."""


class SteadyClock:
    """A clock that advances by the same step each time it is read, for a repeatable world."""

    def __init__(self, start_us: int, step_us: int) -> None:
        self._now_us = start_us
        self._step_us = step_us

    def __call__(self) -> int:
        """Advance the clock, and return unix microseconds."""
        self._now_us += self._step_us
        return self._now_us


@dataclass(slots=True)
class SimulatedAccount:
    """One account. Only `World` changes it."""

    did: str
    handle: str
    repo: Repo
    clock_id: int  # of its TIDs
    active: bool = True  # whether its repository is served
    status: str | None = None  # as `#account` messages have it
    paths: list[str] = field(default_factory=list)  # of its records
    last_us: int = 0  # the time of its newest TID

    def tid(self, now_us: int) -> str:
        """Return the next TID of this account, which is above all earlier ones."""
        self.last_us = max(now_us, self.last_us + 1)
        return tid(self.last_us, self.clock_id)


class World:
    """The accounts of a network. A method that changes something returns the messages that announce it."""

    def __init__(self, population: Population, seed: int, clock: Clock) -> None:
        if population.repos < 1:
            raise ValueError(f"a world needs at least one account, not {population.repos}")
        self.population = population
        self.all_accounts: dict[str, SimulatedAccount] = {}  # by DID, including deleted ones
        self.accounts: list[SimulatedAccount] = []  # without deleted ones
        self._clock = clock
        self._rng = Random(seed)  # noqa: S311 - it must be repeatable
        self._author = Author(self._rng)
        self._records = 0  # in all repositories
        self._records_max = max(population.records_max, 2 * population.repos * population.records)
        # Cumulative weights of `accounts`: the n-th writes about 1/n of what the first one writes.
        weights = accumulate(1 / (n + 1) ** 0.9 for n in range(population.repos))
        self._weights = list(weights)
        now_us = clock()
        for _ in range(population.repos):
            self.accounts.append(self._create_account(now_us))

    def step(self) -> list[Message]:
        """Let one thing happen: mostly a commit, sometimes an event in the life of an account."""
        if self._records > self._records_max:
            return self.replace(max(self.accounts, key=lambda account: len(account.paths)).did)
        if self._rng.random() < self.population.lifecycle:
            return self._lifecycle_event()
        return [self._write_something(self._pick())]

    def messages(self) -> Iterator[Message]:
        """Yield messages of `step` without end."""
        while True:
            yield from self.step()

    def write(self, did: str, writes: Sequence[tuple[str, str, str, Record | None]]) -> Commit:
        """Commit writes of the form (action, collection, rkey, record) to one repository.

        Raises ValueError for an unknown account, a create of a present or an update or delete of an absent
        record, repeated paths, or more than 200 writes.
        """
        account = self._account(did)
        made = [
            Write(action, f"{collection}/{rkey}", record, b"" if record is None else encode_cbor(record))
            for action, collection, rkey, record in writes
        ]
        _check_writes(account, made)
        return self._commit(account, made, self._clock())

    def create_record(self, did: str, collection: str, record: Record, rkey: str | None = None) -> Commit:
        """Commit one new record. Without `rkey`, its key is a TID of the present time."""
        key = rkey or self._account(did).tid(self._clock())
        return self.write(did, [(CREATE, collection, key, record)])

    def write_block(self, did: str, collection: str, block: bytes) -> Commit:
        """Commit a record that is given as CBOR, which need not be valid."""
        account, now_us = self._account(did), self._clock()
        path = f"{collection}/{account.tid(now_us)}"
        return self._commit(account, [Write(CREATE, path, None, block)], now_us)

    def identify(self, did: str, handle: str | None = None) -> Identity:
        """Announce an identity. A handle that is given becomes the handle of the account."""
        account = self._account(did)
        account.handle = handle or account.handle
        return Identity(did, self._time(), handle)

    def set_status(self, did: str, *, active: bool, status: str | None) -> list[Message]:
        """Change the status of an account. On its return to active, announce identity and commit as well."""
        account = self._account(did)
        returns = active and not account.active
        account.active, account.status = active, status
        changed = Account(did, self._time(), active, status)
        return [changed, self.identify(did, account.handle), self.sync(did)] if returns else [changed]

    def rotate_key(self, did: str) -> list[Message]:
        """Replace the signing key of an account: an identity without a handle, and a newly signed commit."""
        account = self._account(did)
        now_us = self._clock()
        key = self._new_key()
        commit = account.repo.resign(key, account.tid(now_us))
        time = records.datetime_of(now_us)
        rev = account.repo.rev or ""
        return [Identity(did, time, None), Sync(did, time, rev, commit)]

    def sync(self, did: str) -> Sync:
        """Announce the present commit of a repository."""
        account = self._account(did)
        assert account.repo.head is not None, "a new account has a commit"
        return Sync(did, self._time(), account.repo.rev or "", account.repo.head)

    def replace(self, did: str) -> list[Message]:
        """Delete an account and create another, with the messages that a server sends for both."""
        deleted = self._account(did)
        now_us = self._clock()
        time = records.datetime_of(now_us)
        deleted.active, deleted.status = False, "deleted"
        self._records -= len(deleted.paths)
        deleted.paths.clear()
        deleted.repo = Repo(did, deleted.repo.key)
        created = self._create_account(now_us, records_count=0)
        self.accounts[self.accounts.index(deleted)] = created
        profile = self._author.profile(now_us)
        commit = self._commit(created, [_created(created, profile, now_us)], now_us)
        return [
            Account(did, time, active=False, status="deleted"),
            Identity(created.did, time, created.handle),
            Account(created.did, time, active=True, status=None),
            commit,
            self.sync(created.did),
        ]

    def document(self, did: str, pds: str) -> dict[str, object] | None:
        """Return the DID document of an account, also of a deleted one; None for an unknown DID."""
        account = self.all_accounts.get(did)
        return None if account is None else did_document(did, account.handle, account.repo.key, pds)

    def _lifecycle_event(self) -> list[Message]:
        """Let something happen that is not a commit, in the proportions of real relays."""
        account = self._rng.choice(self.accounts)
        pick = self._rng.random()
        if pick < 0.45:
            return [self.identify(account.did, account.handle if pick < 0.15 else None)]
        if pick < 0.55:
            return [self.identify(account.did, self._new_handle())]
        if pick < 0.63:
            return [self.sync(account.did)]
        if pick < 0.68:
            return self.rotate_key(account.did)
        if pick < 0.72:
            return self.replace(account.did)
        return self._change_status(account)

    def _change_status(self, account: SimulatedAccount) -> list[Message]:
        if not account.active or account.status is not None:
            return self.set_status(account.did, active=True, status=None)
        pick = self._rng.random()
        if pick < 0.3:
            return self.set_status(account.did, active=True, status=None)
        if pick < 0.5 or sum(other.active for other in self.accounts) < 1 + len(self.accounts) // 2:
            return self.set_status(account.did, active=True, status=self._rng.choice(_ACTIVE))
        return self.set_status(account.did, active=False, status=self._rng.choice(_INACTIVE))

    def _pick(self) -> SimulatedAccount:
        """Return the active account that writes next. At least half are active, see `_change_status`."""
        while True:
            index = bisect(self._weights, self._rng.random() * self._weights[-1])
            account = self.accounts[min(index, len(self.accounts) - 1)]
            if account.active:
                return account

    def _write_something(self, account: SimulatedAccount) -> Commit:
        now_us = self._clock()
        count = 1 if self._rng.random() >= self.population.multiple else self._ops_count()
        writes: dict[str, Write] = {}
        for _ in range(count):
            write = self._one_write(account, now_us)
            writes.setdefault(write.path, write)
        return self._commit(account, list(writes.values()), now_us)

    def _ops_count(self) -> int:
        """Return a number of operations: mostly 2 to 5, sometimes 0, rarely up to the limit."""
        pick = self._rng.random()
        if pick < 0.02:
            return 0
        return self._rng.randrange(2, 6) if pick < 0.98 else self._rng.randrange(6, OPS_MAX + 1)

    def _one_write(self, account: SimulatedAccount, now_us: int) -> Write:
        pick = self._rng.random()
        if pick < self.population.deletes and account.paths:
            return Write(DELETE, self._rng.choice(account.paths), None, b"")
        if pick < self.population.deletes + self.population.updates:
            draft = self._author.singleton(account.did, now_us)
        else:
            draft = self._author.new(now_us)
        return _created(account, draft, now_us)

    def _commit(self, account: SimulatedAccount, writes: list[Write], now_us: int) -> Commit:
        revision = account.repo.apply(writes, account.tid(now_us))
        for op in revision.ops:
            if op.action == CREATE:
                account.paths.append(op.path)
                self._records += 1
                if op.path.startswith(records.POST) and op.cid is not None:
                    self._author.remember(f"at://{account.did}/{op.path}", op.cid)
            elif op.action == DELETE:
                account.paths.remove(op.path)
                self._records -= 1
        return Commit(account.did, records.datetime_of(now_us), revision)

    def _create_account(self, now_us: int, records_count: int | None = None) -> SimulatedAccount:
        """Create an account with `records_count` records, or as many as the population says."""
        key = self._new_key()
        handle = self._new_handle()
        did = self._new_did(key, handle)
        account = SimulatedAccount(did, handle, Repo(did, key), self._rng.randrange(CLOCK_IDS))
        count = self.population.records if records_count is None else records_count
        if count:
            self._fill_repo(account, count, now_us)
        self.all_accounts[did] = account
        return account

    def _fill_repo(self, account: SimulatedAccount, count: int, now_us: int) -> None:
        filled: dict[str, bytes] = {}
        for age_us in sorted((self._rng.randrange(1, _PAST_US) for _ in range(count)), reverse=True):
            draft = self._author.new(now_us - age_us) if filled else self._author.profile(now_us - age_us)
            write = _created(account, draft, now_us - age_us)
            filled[write.path] = write.block
        account.paths = list(filled)
        self._records += len(filled)
        account.repo.fill(filled.items(), account.tid(now_us))

    def _new_key(self) -> SigningKey:
        secret = self._rng.randbytes(32)
        return P256Key(secret) if self._rng.random() < 0.05 else K256Key(secret)

    def _new_handle(self) -> str:
        return f"u{self._rng.getrandbits(40):x}.{self._rng.choice(_DOMAINS)}"

    def _new_did(self, key: SigningKey, handle: str) -> str:
        if self._rng.random() < 0.01:
            return f"did:web:{handle}"
        return plc_did_of(key)

    def _account(self, did: str) -> SimulatedAccount:
        account = self.all_accounts.get(did)
        if account is None or account.status == "deleted":
            raise ValueError(f"{did} is not an account of this world")
        return account

    def _time(self) -> str:
        return records.datetime_of(self._clock())


_DOMAINS: Final = ("social.test", "pds.test", "handles.example.com")


def plc_did_of(key: SigningKey) -> str:
    """Return a DID derived from a key, with 24 characters of base 32 like those of `did:plc`."""
    digest = sha256(key.multibase.encode()).digest()[:15]
    return "did:plc:" + libipld.encode_multibase("b", digest)[1:]


def did_document(did: str, handle: str, key: SigningKey, pds: str) -> dict[str, object]:
    """Return a DID document as the directory serves it."""
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


def _created(account: SimulatedAccount, draft: Draft, now_us: int) -> Write:
    """Turn a draft into a write: an update if its path exists, else a create."""
    path = f"{draft.collection}/{draft.rkey or account.tid(now_us)}"
    action = UPDATE if path in account.repo.records else CREATE
    return Write(action, path, draft.record, encode_cbor(draft.record))


def _check_writes(account: SimulatedAccount, writes: list[Write]) -> None:
    if len(writes) > OPS_MAX or len({write.path for write in writes}) < len(writes):
        raise ValueError(f"a commit has at most {OPS_MAX} writes, each to another path")
    for write in writes:
        if (write.path in account.repo.records) == (write.action == CREATE):
            raise ValueError(f"{write.action} of {write.path} does not fit the repository of {account.did}")
