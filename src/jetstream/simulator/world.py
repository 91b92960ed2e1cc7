"""The accounts of a simulated network, and what they do, as a sequence of messages.

A world is pure: the same seed and the same clock make the same messages, including every signature. `step`
makes something happen by chance; the other methods let a test make it happen.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate
from random import Random
from typing import Final

from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.tid import CLOCK_IDS
from jetstream.simulator import records
from jetstream.simulator.account import SimulatedAccount, check_writes, created
from jetstream.simulator.frames import Account, Commit, Identity, Message, Sync
from jetstream.simulator.identities import Change, did_document, host_number, plc_did_of
from jetstream.simulator.population import Clock, Population, SteadyClock
from jetstream.simulator.records import Author, Record
from jetstream.simulator.repo import CREATE, DELETE, OPS_MAX, Repo, Write
from jetstream.simulator.signing import K256Key, P256Key, SigningKey

__all__ = ["Clock", "Population", "SteadyClock", "World"]

CHANGES_MAX: Final = 100_000  # of keys and handles by chance, which the directory keeps: about 100 MB
_INACTIVE: Final = ("takendown", "suspended", "deactivated")
_ACTIVE: Final = ("desynchronized", "throttled")  # statuses in which an account is still active
_PAST_US: Final = 200 * 86_400_000_000  # the age of the oldest record of a new world


class World:
    """The accounts of a network. A method that changes something returns the messages that announce it."""

    def __init__(self, population: Population, seed: int, clock: Clock) -> None:
        if population.repos < 1:
            raise ValueError(f"a world needs at least one account, not {population.repos}")
        self.population = population
        self.all_accounts: dict[str, SimulatedAccount] = {}  # by DID, including deleted ones
        self.accounts: list[SimulatedAccount] = []  # without deleted ones
        self.changes: list[Change] = []  # of all identities, in the order of time
        self.now_us = 0  # when the newest message was made
        self._clock = clock
        self._rng = Random(seed)  # noqa: S311 - it must be repeatable
        self._author = Author(self._rng)
        self._records = 0  # in all repositories
        self._records_max = max(population.records_max, 2 * population.repos * population.records)
        # Cumulative weights of `accounts`: the n-th writes about 1/n of what the first one writes.
        weights = accumulate(1 / (n + 1) ** 0.9 for n in range(population.repos))
        self._weights = list(weights)
        now_us = self._now()
        for left in range(population.repos, 0, -1):
            # Accounts are in the directory before they write, each since a millisecond of its own.
            self.accounts.append(self._create_account(now_us, known_us=now_us - 1000 * left))

    def step(self) -> list[Message]:
        """Let one thing happen: mostly a commit, sometimes an event in the life of an account."""
        if self._records > self._records_max:
            return self.replace(max(self.accounts, key=lambda account: len(account.paths)).did)
        if self._rotates():
            return self.rotate_key(self._pick().did)
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
        check_writes(account, made)
        return self._commit(account, made, self._now())

    def create_record(self, did: str, collection: str, record: Record, rkey: str | None = None) -> Commit:
        """Commit one new record. Without `rkey`, its key is a TID of the present time."""
        key = rkey or self._account(did).tid(self._now())
        return self.write(did, [(CREATE, collection, key, record)])

    def write_block(self, did: str, collection: str, block: bytes) -> Commit:
        """Commit a record that is given as CBOR, which need not be valid."""
        account, now_us = self._account(did), self._now()
        path = f"{collection}/{account.tid(now_us)}"
        return self._commit(account, [Write(CREATE, path, None, block)], now_us)

    def identify(self, did: str, handle: str | None = None) -> Identity:
        """Announce an identity. A handle that is given becomes the handle of the account."""
        account = self._account(did)
        time = self._time()
        if handle is not None and handle != account.handle:
            account.handle = handle
            self._log_identity(account, self.now_us)
        return Identity(did, time, handle)

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
        # A millisecond after the last commit, so that the log of the directory tells which key signed what.
        after_us = max(account.last_us // 1000 * 1000 + 1000, self.changes[-1].time_us)
        now_us = max(self._now(), after_us)
        key = self._new_key()
        commit = account.repo.resign(key, account.tid(now_us))
        self._log_identity(account, now_us)
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
        now_us = self._now()
        time = records.datetime_of(now_us)
        deleted.active, deleted.status = False, "deleted"
        self._records -= len(deleted.paths)
        deleted.paths.clear()
        deleted.repo = Repo(did, deleted.repo.key)
        coming = self._create_account(now_us, records_count=0)
        self.accounts[self.accounts.index(deleted)] = coming
        profile = self._author.profile(now_us)
        commit = self._commit(coming, [created(coming, profile, now_us)], now_us)
        return [
            Account(did, time, active=False, status="deleted"),
            Identity(coming.did, time, coming.handle),
            Account(coming.did, time, active=True, status=None),
            commit,
            self.sync(coming.did),
        ]

    def document(self, did: str, pds: str) -> dict[str, object] | None:
        """Return the DID document of an account, also of a deleted one; None for an unknown DID."""
        account = self.all_accounts.get(did)
        if account is None:
            return None
        return did_document(did, account.handle, account.repo.key.multibase, pds)

    def _lifecycle_event(self) -> list[Message]:
        """Let something happen that is not a commit, in the proportions of real relays."""
        account = self._rng.choice(self.accounts)
        pick = self._rng.random()
        if pick < 0.45:
            return [self.identify(account.did, account.handle if pick < 0.15 else None)]
        if pick < 0.55:
            return [self.identify(account.did, self._new_handle() if self._may_change() else None)]
        if pick < 0.63:
            return [self.sync(account.did)]
        if pick < 0.68:
            return self.rotate_key(account.did) if self._may_change() else [self.sync(account.did)]
        if pick < 0.72:
            return self.replace(account.did)
        return self._change_status(account)

    def _rotates(self) -> bool:
        """Return whether this step replaces a key. Without rotations it draws no random number."""
        rate = self.population.rotations
        return bool(rate) and self._rng.random() < rate and self._may_change()

    def _may_change(self) -> bool:
        return len(self.changes) < CHANGES_MAX + len(self.all_accounts)

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
        now_us = self._now()
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
        return created(account, draft, now_us)

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

    def _create_account(
        self, now_us: int, records_count: int | None = None, known_us: int | None = None
    ) -> SimulatedAccount:
        """Create an account with `records_count` records, or as many as the population says.

        It is in the directory since `known_us`, or since now.
        """
        key = self._new_key()
        handle = self._new_handle()
        did = self._new_did(key, handle)
        host = host_number(did, self.population.pds, self.population.pds_share)
        account = SimulatedAccount(did, handle, Repo(did, key), self._rng.randrange(CLOCK_IDS), host)
        count = self.population.records if records_count is None else records_count
        if count:
            self._fill_repo(account, count, now_us)
        self.all_accounts[did] = account
        self._log_identity(account, now_us if known_us is None else known_us)
        return account

    def _log_identity(self, account: SimulatedAccount, time_us: int) -> None:
        """Add what an identity is now to `changes`. A clock that steps back does not disorder them."""
        last_us = self.changes[-1].time_us if self.changes else 0
        at_us = max(time_us // 1000 * 1000, last_us)
        self.changes.append(Change(account.did, at_us, account.repo.key.multibase, account.handle))

    def _fill_repo(self, account: SimulatedAccount, count: int, now_us: int) -> None:
        filled: dict[str, bytes] = {}
        for age_us in sorted((self._rng.randrange(1, _PAST_US) for _ in range(count)), reverse=True):
            draft = self._author.new(now_us - age_us) if filled else self._author.profile(now_us - age_us)
            write = created(account, draft, now_us - age_us)
            filled[write.path] = write.block
        account.paths = list(filled)
        self._records += len(filled)
        account.repo.fill(filled.items(), account.tid(now_us - age_us))  # that of its newest record

    def _new_key(self) -> SigningKey:
        secret = self._rng.randbytes(32)
        return P256Key(secret) if self._rng.random() < 0.05 else K256Key(secret)

    def _new_handle(self) -> str:
        return f"u{self._rng.getrandbits(40):x}.{self._rng.choice(_DOMAINS)}"

    def _new_did(self, key: SigningKey, handle: str) -> str:
        if self._rng.random() < self.population.did_web:
            return f"did:web:{handle}"
        return plc_did_of(key)

    def _account(self, did: str) -> SimulatedAccount:
        account = self.all_accounts.get(did)
        if account is None or account.status == "deleted":
            raise ValueError(f"{did} is not an account of this world")
        return account

    def _now(self) -> int:
        self.now_us = self._clock()
        return self.now_us

    def _time(self) -> str:
        return records.datetime_of(self._now())


_DOMAINS: Final = ("social.test", "pds.test", "handles.example.com")
