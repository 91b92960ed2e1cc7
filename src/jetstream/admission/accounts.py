"""The states of accounts (`#account`), which several sources tell: one source decides for each account. Pure.

A relay passes on what the account's PDS says, and has takedowns of its own. So sources may differ for good,
and readers must not be told one state after the other in turn.

*Who decides.* The account's own PDS, if that is a source (`host`); else the first relay of the list. A source
that is not *steady* is passed over. It stops being steady when it was disconnected for `grace_s`, and is
steady again when it was connected for as long. So a short outage changes nothing. If none is steady, the
first that is connected decides; if none is, the one that speaks. A source that is far behind must count as
disconnected: what it says is old.

*What an event does.* The state is `active` and `status`. *Told* is what readers were told last; at first that
an account is active.

    event of a source          its state     passes   is kept
    ---------------------------------------------------------------------------------------------------------
    that decides               not as told   yes      as told
    that decides               as told       yes      nothing new: its own word again, or a first one. If
                                                      another source has told it: no, and from now on this
                                                      one has told it
    any other                  not as told   no       as what the source says
    any other                  as told       no       nothing; what the source said before is forgotten

*When another source decides* for an account, and it has said something else than was told, that is told
(`differences`). What the source before it had told is kept as what that one says: if it decides again, this
is a difference once more. The silence of a source that decides counts as `active` if it is connected: readers
were told so while it decided. The silence of any other source says nothing. It may have lost the event, or
have sent it before we were connected.

    readers were told   the new source has said   then
    ------------------------------------------------------------------
    S                   nothing, or S             nothing
    S                   T                         T is told

*What is kept.* An account needs rows only if readers were told that it is not active, or while a source says
something else than was told:

    key           value
    ------------------------------------------------------------------
    "", DID       what was told: the name of the source, a line feed, and the body of the event
    source, DID   the body of its last event, if it differs from what was told

An empty body stands for `active` that nobody said. The rows are part of the log's transaction (`changes`). At
most `rows_max` are kept; the accounts that have changed longest ago are forgotten first. A forgotten account
has no differences until a source says something again. With one source, nothing is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from jetstream.model.timestamp import to_date

_TOLD: Final = ""  # the source in the key of what was told; no source has this name
_NOBODY: Final = ""  # who told what nobody has said

State = tuple[bool, str]  # active, status
_ACTIVE: Final = (True, "")
Rows = Mapping[tuple[str, str], bytes]


class Difference(NamedTuple):
    """What readers must be told because another source decides: an event of a source, with its body."""

    source: str
    did: str
    body: bytes

    @property
    def status(self) -> str:
        """The status, such as `deleted`; empty: there is none."""
        return _state(self.body)[1]


class _Source:
    """Whether a source is connected, and whether it is steady."""

    def __init__(self, *, steady: bool, since: float) -> None:
        self.connected = False
        self.steady = steady  # follows `connected` after `grace_s`
        self.since = since  # when `connected` changed last

    def update(self, connected: bool, now: float, grace_s: float) -> bool:
        """Note whether it is connected; return whether that changes what it counts for."""
        before = (self.connected, self.steady)
        if connected != self.connected:
            self.connected, self.since = connected, now
        if now - self.since >= grace_s:
            self.steady = connected
        return before != (self.connected, self.steady)


class _Account:
    """What is known of one account: what was told, by whom, and what other sources say instead."""

    __slots__ = ("body", "said", "teller")

    def __init__(self) -> None:
        self.teller = _NOBODY
        self.body = b""
        self.said: dict[str, bytes] = {}  # by source; each differs from what was told

    def rows(self) -> dict[str, bytes]:
        """Return the rows by source; none if the account is active and nobody says anything else."""
        if not self.said and _state(self.body) == _ACTIVE:
            return {}
        return {_TOLD: f"{self.teller}\n".encode() + self.body, **self.said}


class Accounts:
    """The states of accounts by source.

    `relays` are the names of sources that speak for all accounts, in the order of the list; `hosts` those of
    PDSes, each of which speaks for its own. `rows` are those of the log. `now` is in seconds of the clock
    that `update` is given.
    """

    def __init__(
        self,
        relays: Sequence[str],
        hosts: Collection[str],
        rows: Rows,
        *,
        now: float,
        grace_s: float,
        rows_max: int,
    ) -> None:
        self._grace_s = grace_s
        self._rows_max = rows_max
        # All sources by name; changed by `set_sources`.
        self._relays = tuple(relays)
        self._sources = {name: _Source(steady=True, since=now) for name in (*relays, *hosts)}
        # The accounts that have rows, by DID; the one that has changed longest ago is the first.
        self._accounts: dict[str, _Account] = {}
        self._count = 0  # rows of all of them
        # Rows that have changed since `changes` was called.
        self._changes: dict[tuple[str, str], bytes | None] = {}
        # The accounts that are still to be looked at for differences. Filled when sources have changed.
        self._unexamined: list[str] = []
        self._load(rows)

    def __len__(self) -> int:
        """Return how many rows there are."""
        return self._count

    def set_sources(self, relays: Sequence[str], hosts: Collection[str], now: float) -> None:
        """Set the sources. A new one must be steady before it decides; those that are gone are forgotten."""
        before = self._sources
        self._relays = tuple(relays)
        self._sources = {
            name: before.get(name) or _Source(steady=False, since=now) for name in (*relays, *hosts)
        }
        if gone := before.keys() - self._sources.keys():
            for did in list(self._accounts):
                self._forget_sources(did, gone)
        self._examine_all()

    def update(self, connected: Collection[str], now: float) -> None:
        """Note which sources are connected. Called when that changes, and every second."""
        changes = [
            source.update(name in connected, now, self._grace_s) for name, source in self._sources.items()
        ]
        if any(changes):
            self._examine_all()

    def offer(self, source: str, did: str, body: bytes, host: str | None = None) -> bool:
        """Take an account event; return whether it passes.

        `body` is that of the event. `host` is the name of the source that is the account's own PDS, as far as
        that is known (`pds.Hosts.source_of`).
        """
        if len(self._sources) < 2 and did not in self._accounts:
            return True
        account = self._accounts.get(did) or _Account()
        before = account.rows()
        if source not in self._relays:
            self._forget_hosts(account, source)
        decides = self._decider(account, source, host) == source
        passes = self._decide(account, source, body) if decides else self._note(account, source, body, host)
        self._keep(did, account, before)
        return passes

    def differences(self, accounts_max: int, now_us: int) -> list[Difference]:
        """Return what readers must be told, from the next `accounts_max` accounts that have rows.

        Each is told from then on. Call it until `is_settled`. `now_us` is the time in the event of a state
        that nobody has said, in unix microseconds.
        """
        found: list[Difference] = []
        for _ in range(min(accounts_max, len(self._unexamined))):
            did = self._unexamined.pop()
            if (account := self._accounts.get(did)) is not None:
                before = account.rows()
                if (difference := self._difference(did, account, now_us)) is not None:
                    found.append(difference)
                    self._keep(did, account, before)
        return found

    @property
    def is_settled(self) -> bool:
        """Whether `differences` has looked at every account since sources have changed."""
        return not self._unexamined

    def changes(self) -> Mapping[tuple[str, str], bytes | None]:
        """Return the rows that have changed since the last call, for the next append. None: it is removed."""
        changes, self._changes = self._changes, {}
        return changes

    # --- who decides ---

    def _decider(self, account: _Account, speaks: str, host: str | None) -> str:
        """Return the source that decides for an account."""
        named = [name for name in (host, speaks, account.teller, *account.said) if name in self._sources]
        own = [name for name in named if name not in self._relays][:1]
        candidates = [*own, *self._relays]
        steady = [name for name in candidates if self._sources[name].steady]
        connected = [name for name in candidates if self._sources[name].connected]
        return [*steady, *connected, speaks][0]

    # --- what an event does ---

    def _decide(self, account: _Account, source: str, body: bytes) -> bool:
        """Take the event of the source that decides."""
        account.said.pop(source, None)
        if _state(body) != _state(account.body):
            self._tell(account, source, body)
            return True
        passes = account.teller == source or not account.body
        account.teller, account.body = source, body
        return passes

    def _tell(self, account: _Account, source: str, body: bytes) -> None:
        """Note what readers are told now. What was told before is what its source says still."""
        if account.teller not in (source, _NOBODY):
            account.said.setdefault(account.teller, account.body)
        state = _state(body)
        account.said = {
            name: said for name, said in account.said.items() if name != source and _state(said) != state
        }
        account.teller, account.body = source, body

    def _note(self, account: _Account, source: str, body: bytes, host: str | None) -> bool:
        """Keep what a source says that does not decide, if it is not what was told."""
        if _state(body) == _state(account.body):
            account.said.pop(source, None)
            return False
        if account.teller == _NOBODY:
            decider = self._decider(account, source, host)
            # Its silence counts if it could have spoken. A PDS is also noted as the one of the account.
            if self._sources[decider].connected or decider == host:
                account.teller = decider
        account.said[source] = body
        return False

    def _difference(self, did: str, account: _Account, now_us: int) -> Difference | None:
        """Tell what the source that decides says, if that is not what was told. Return it."""
        decider = self._decider(account, "", None)
        body = account.said.get(decider)
        if body is None or not self._sources[decider].connected:
            return None
        body = body or _active(did, account.body, now_us)
        self._tell(account, decider, body)
        return Difference(decider, did, body)

    def _forget_hosts(self, account: _Account, source: str) -> None:
        """Forget what other PDSes have said: the account has moved to this one."""
        kept = (source, *self._relays)
        account.said = {name: body for name, body in account.said.items() if name in kept}
        if account.teller not in kept:
            account.teller = _NOBODY

    # --- rows ---

    def _keep(self, did: str, account: _Account, before: Mapping[str, bytes]) -> None:
        """Keep the rows of an account, which were others `before`."""
        after = account.rows()
        if after == before:
            return
        self._note_changes(did, before, after)
        self._accounts.pop(did, None)
        if after:
            self._accounts[did] = account
        while self._count > self._rows_max:
            oldest = next(iter(self._accounts))
            self._note_changes(oldest, self._accounts.pop(oldest).rows(), {})

    def _note_changes(self, did: str, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
        self._count += len(after) - len(before)
        for source in before.keys() | after.keys():
            if before.get(source) != after.get(source):
                self._changes[source, did] = after.get(source)

    def _forget_sources(self, did: str, gone: Collection[str]) -> None:
        """Forget what sources have said of an account. What they have told stays told."""
        account = self._accounts[did]
        before = account.rows()
        account.said = {name: body for name, body in account.said.items() if name not in gone}
        if account.teller in gone:
            account.teller = _NOBODY
        self._keep(did, account, before)

    def _load(self, rows: Rows) -> None:
        """Read the rows of the log. Those of sources that are not in use any more are removed."""
        stored: dict[str, dict[str, bytes]] = {}
        for (source, did), row in rows.items():
            stored.setdefault(did, {})[source] = row
        for did, by_source in stored.items():
            account = _Account()
            teller, _, account.body = by_source.get(_TOLD, b"\n").partition(b"\n")
            account.teller = teller.decode() if teller.decode() in self._sources else _NOBODY
            account.said = {
                name: row for name, row in by_source.items() if name != _TOLD and name in self._sources
            }
            self._count += len(by_source)
            self._accounts[did] = account
            self._keep(did, account, by_source)
        self._examine_all()

    def _examine_all(self) -> None:
        self._unexamined = [did for did, account in reversed(self._accounts.items()) if account.said]


def _state(body: bytes) -> State:
    """Return what the body of an account event says."""
    if not body:
        return _ACTIVE
    fields: dict[str, Any] = orjson.loads(body)
    return fields["active"], fields.get("status", "")


def _active(did: str, told: bytes, now_us: int) -> bytes:
    """Return the body of an event that says an account is active, in the place of what was told."""
    fields = {"active": True, "did": did, "seq": orjson.loads(told)["seq"], "time": to_date(now_us)}
    return orjson.dumps(fields)
