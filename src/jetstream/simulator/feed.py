"""A host with a firehose: a relay of all accounts, or a PDS of its own accounts."""

from __future__ import annotations

from random import Random
from typing import Final

from jetstream.simulator.account import SimulatedAccount
from jetstream.simulator.firehose import LiveFirehose
from jetstream.simulator.frames import Account, Message
from jetstream.simulator.losses import Fate
from jetstream.simulator.records import datetime_of
from jetstream.simulator.stream import Stream
from jetstream.simulator.truth import events_of

TAKEN_DOWN: Final = "takendown"


class Feed:
    """One host: its stream, the server of the stream, and the accounts that it has taken down itself."""

    def __init__(self, stream: Stream, firehose: LiveFirehose, *, seed: object, takedowns: float = 0) -> None:
        self.name = stream.name
        self.stream = stream
        self.firehose = firehose
        self.url = ""  # where it is served: `http://…`, without a slash at the end
        self.taken_down: set[str] = set()  # DIDs of accounts that only this host does not serve
        self._takedowns = takedowns
        self._rng = Random(f"takedowns {seed}")  # noqa: S311 - it must be repeatable

    def receive(self, message: Message, index: int | None = None, fate: Fate = Fate.SENT) -> None:
        """Append a message of the world, or lose it. `index` is that of its first event in the truth."""
        self.firehose.set_out(fate is Fate.OUT)
        if fate is not Fate.SENT:
            self.stream.lose(message, fate.value, index)
        elif message.did in self.taken_down and not _is_deletion(message):
            self.stream.lose(message, "taken_down", index)
        else:
            self.taken_down.discard(message.did)
            self.stream.append(message, index)
            if self._takedowns and self._rng.random() < self._takedowns:
                self._change_one()

    def take_down(self, did: str) -> None:
        """Announce that an account is taken down, and leave out what it does until it is restored."""
        self.taken_down.add(did)
        self._announce(did, active=False, status=TAKEN_DOWN)

    def restore(self, did: str) -> None:
        """Announce an account again as it is in the world."""
        self.taken_down.discard(did)
        account = self.stream.world.all_accounts[did]
        self._announce(did, active=account.active, status=account.status)

    def status_of(self, account: SimulatedAccount) -> tuple[bool, str | None]:
        """Return whether this host serves an account, and its status here."""
        if account.did in self.taken_down:
            return False, TAKEN_DOWN
        return account.active, account.status

    def _change_one(self) -> None:
        """Take down an account by chance; or restore one, the more probably the more there are."""
        accounts = self.stream.world.accounts
        if self._rng.random() < 0.5 + len(self.taken_down) / len(accounts):
            for did in sorted(self.taken_down)[:1]:
                self.restore(did)
        else:
            self.take_down(self._rng.choice(accounts).did)

    def _announce(self, did: str, *, active: bool, status: str | None) -> None:
        """Send a message of this host alone. The ledger has its event, which the truth has not."""
        stream = self.stream
        message = Account(did, datetime_of(stream.world.now_us), active, status)
        stream.append_intact(message)
        stream.log_fault(
            "takedown" if not active else "restore", did=did, added=events_of(message, stream.seq)
        )


def _is_deletion(message: Message) -> bool:
    return isinstance(message, Account) and message.status == "deleted"
