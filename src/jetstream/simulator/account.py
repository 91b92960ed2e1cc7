"""One simulated account, and the writes that fit its repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.tid import tid
from jetstream.simulator.records import Draft
from jetstream.simulator.repo import CREATE, OPS_MAX, UPDATE, Repo, Write


@dataclass(slots=True)
class SimulatedAccount:
    """One account. Only `World` changes it."""

    did: str
    handle: str
    repo: Repo
    clock_id: int  # of its TIDs
    host: int = 0  # the number of its PDS; 0: the host of everyone else
    active: bool = True  # whether its repository is served
    status: str | None = None  # as `#account` messages have it
    paths: list[str] = field(default_factory=list)  # of its records
    last_us: int = 0  # the time of its newest TID

    def tid(self, now_us: int) -> str:
        """Return the next TID of this account, which is above all earlier ones."""
        self.last_us = max(now_us, self.last_us + 1)
        return tid(self.last_us, self.clock_id)


def created(account: SimulatedAccount, draft: Draft, now_us: int) -> Write:
    """Turn a draft into a write: an update if its path exists, else a create."""
    path = f"{draft.collection}/{draft.rkey or account.tid(now_us)}"
    action = UPDATE if path in account.repo.records else CREATE
    return Write(action, path, draft.record, encode_cbor(draft.record))


def check_writes(account: SimulatedAccount, writes: Sequence[Write]) -> None:
    """Raise ValueError for writes that cannot be one commit to the repository of an account."""
    if len(writes) > OPS_MAX or len({write.path for write in writes}) < len(writes):
        raise ValueError(f"a commit has at most {OPS_MAX} writes, each to another path")
    for write in writes:
        if (write.path in account.repo.records) == (write.action == CREATE):
            raise ValueError(f"{write.action} of {write.path} does not fit the repository of {account.did}")
