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

    an event of a source   its state     passes
    ----------------------------------------------------------------------------------------
    that decides           not as told   yes: it is told from now on
    that decides           as told       yes, if this source has said so before, or nobody has;
                                         no, if readers have it from another source only
    any other              not as told   no: it is kept as what this source says
    any other              as told       no

*When another source decides* for an account, and it has said something else than was told, that is told
(`differences`). So nothing is told twice because sources change:

    readers were told   the new source said last   then
    ----------------------------------------------------------------
    S                   S, or nothing              nothing
    S                   T                          T is told

What the sources before it have said stays what they say: if one of them decides again, this is a difference
once more. If the source that decides is silent while another one says something else, that counts as if it
had said what was told: readers were told so while it decided. Any other silence says nothing. The source may
have lost the event, or have sent it before we were connected.

*What is kept.* An account needs rows only if readers were told that it is not active, or while a source says
something else than was told:

    key           value
    -----------------------------------------------------------------------------------------------
    "", DID       what was told: the names of the sources that have said so, each followed by a NUL,
                  and the body of the event
    source, DID   the body of its last event, if it differs from what was told

An empty body stands for `active` that nobody has said. Of accounts without rows, all is active. The rows are
part of the log's transaction (`changes`). At most `rows_max` are kept; the accounts that have changed longest
ago are forgotten first. A forgotten account has no differences until a source says something again. With one
source, nothing is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from jetstream.admission.availability import Availability
from jetstream.model.timestamp import to_date

_TOLD: Final = ""  # the source in the key of what was told; no source has this name

State = tuple[bool, str]  # active, status
_ACTIVE: Final = (True, "")
# By source and DID. The source of what was told is `_TOLD`.
Rows = Mapping[tuple[str, str], bytes]


class Difference(NamedTuple):
    """What readers must be told because another source decides: an event of a source, with its body."""

    # The source that decides now.
    source: str
    did: str
    # The body of the event: one that the source has sent, perhaps long ago, or one that is made now
    # (`_active`).
    body: bytes

    @property
    def status(self) -> str:
        """The status, such as `deleted`; empty: there is none."""
        return _state(self.body)[1]


class _Account:
    """What is known of one account: what was told, who has said so, and what other sources say instead.

    States are compared by `active` and `status` alone. Two bodies of one state differ in their `seq` and
    `time`.
    """

    __slots__ = ("body", "said", "tellers")

    def __init__(self) -> None:
        # The body of the event that readers were told last; empty: none, which stands for active.
        self.body = b""
        # The names of the sources whose last event says what was told, in the order in which they said
        # so.
        self.tellers: tuple[str, ...] = ()
        # The bodies of the last events of other sources, by source. Each says another state than was
        # told.
        self.said: dict[str, bytes] = {}

    def keep(self, sources: Container[str]) -> None:
        """Forget what any other source has said. What was told stays told."""
        self.tellers = tuple(name for name in self.tellers if name in sources)
        self.said = {name: body for name, body in self.said.items() if name in sources}

    def rows(self) -> dict[str, bytes]:
        """Return the rows by source; none if the account is active and nobody says anything else."""
        if not self.said and _state(self.body) == _ACTIVE:
            return {}
        names = "".join(f"{name}\0" for name in self.tellers)
        return {_TOLD: names.encode() + self.body, **self.said}


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
        # Rows that are kept of all accounts together.
        self._rows_max = rows_max
        # Both change with `set_sources`. Which sources are connected is of use to others as well:
        # `Holding` asks it before a message is held.
        self._relays = tuple(relays)
        self.sources = Availability((*relays, *hosts), now, grace_s)
        # The accounts that have rows, by DID; the one that has changed longest ago is the first.
        self._accounts: dict[str, _Account] = {}
        self._count = 0  # rows of all of them
        # Rows that have changed since `changes` was called.
        self._changes: dict[tuple[str, str], bytes | None] = {}
        # The accounts that are still to be looked at for differences. Filled when sources have changed.
        self._unexamined: list[str] = []
        # The accounts of which a source that is gone may have said something. Filled when one was removed.
        self._to_tidy: list[str] = []
        self._load(rows)

    def __len__(self) -> int:
        """Return how many rows there are."""
        return self._count

    @property
    def relays(self) -> tuple[str, ...]:
        """The names of the sources that speak for all accounts, in their order."""
        return self._relays

    def set_sources(self, relays: Sequence[str], hosts: Collection[str], now: float) -> None:
        """Set the sources. A new one must be steady before it decides.

        What those that are gone have said does not count from now on. `forget_some` is to be called until
        that is forgotten, before one of them may be added again.
        """
        before = set(self.sources)
        self._relays = tuple(relays)
        self.sources.set_names((*relays, *hosts), now)
        if not before.issubset(self.sources):
            self._to_tidy = list(reversed(self._accounts))
        self._examine_all()

    def forget_some(self, accounts_max: int) -> bool:
        """Forget what sources have said that are not in use any more. Return whether there is more of it.

        It looks at the next `accounts_max` accounts: all of them would take a tenth of a second.
        """
        for _ in range(min(accounts_max, len(self._to_tidy))):
            did = self._to_tidy.pop()
            if (account := self._accounts.get(did)) is not None:
                before = account.rows()
                account.keep(self.sources)
                self._keep(did, account, before)
        return bool(self._to_tidy)

    def update(self, connected: Collection[str], now: float) -> None:
        """Note which sources are connected. Called when that changes, and every second."""
        if self.sources.update(connected, now):
            self._examine_all()

    def offer(self, source: str, did: str, body: bytes, host: str | None = None) -> bool:
        """Take an account event; return whether it passes.

        `body` is that of the event. `host` is the name of the source that is the account's own PDS, as
        far as that is known (`hosting.Hosting.source_of`). With one source, every event passes and
        nothing is kept, unless the account has rows of a time with several.
        """
        if len(self.sources) < 2 and did not in self._accounts:
            return True
        account = self._accounts.get(did) or _Account()
        before = account.rows()
        if source not in self._relays:
            account.keep((source, *self._relays))  # it is on this PDS now
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
        """Return the source that decides for an account.

        `speaks` is the source whose event is judged; empty: none is. Where the PDS is not known by the
        document of the account, it is the source that is no relay and has spoken for it.
        """
        named = [host or speaks, speaks, *account.tellers, *account.said]
        own = [name for name in named if name in self.sources and name not in self._relays][:1]
        return self.sources.first([*own, *self._relays]) or speaks

    # --- what an event does ---

    def _decide(self, account: _Account, source: str, body: bytes) -> bool:
        """Take the event of the source that decides; return whether it passes.

        One that says what was told passes if this source is among those that have said so, or if nobody
        has: a source may repeat itself. Else readers have it from another source.
        """
        if _state(body) != _state(account.body):
            self._tell(account, source, body)
            return True
        passes = source in account.tellers or not account.body
        self._agree(account, source, body)
        return passes

    def _agree(self, account: _Account, source: str, body: bytes) -> None:
        """Note that a source says what was told."""
        account.said.pop(source, None)
        if source not in account.tellers:
            account.tellers += (source,)
        account.body = account.body or body

    def _tell(self, account: _Account, source: str, body: bytes) -> None:
        """Note what readers are told now. Who has said what was told before says so still."""
        said = {**dict.fromkeys(account.tellers, account.body), **account.said, source: body}
        state = _state(body)
        account.body = body
        account.tellers = tuple(name for name, each in said.items() if _state(each) == state)
        account.said = {name: each for name, each in said.items() if _state(each) != state}

    def _note(self, account: _Account, source: str, body: bytes, host: str | None) -> bool:
        """Keep what a source says that does not decide, if it is not what was told."""
        if _state(body) == _state(account.body):
            self._agree(account, source, body)
            return False
        decider = self._decider(account, source, host)
        # Its silence counts if it could have spoken. A PDS is also noted as the one of the account.
        silent = decider not in account.said and (self.sources.is_connected(decider) or decider == host)
        named = dict.fromkeys((*account.tellers, decider) if silent else account.tellers)
        account.tellers = tuple(name for name in named if name != source)
        account.said[source] = body
        return False

    def _difference(self, did: str, account: _Account, now_us: int) -> Difference | None:
        """Tell what the source that decides says, if that is not what was told. Return it."""
        decider = self._decider(account, "", None)
        body = account.said.get(decider)
        if body is None or not self.sources.is_connected(decider):
            return None
        body = body or _active(did, account.body, now_us)
        self._tell(account, decider, body)
        return Difference(decider, did, body)

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
        self._make_room()

    def _make_room(self) -> None:
        """Forget the accounts that have changed longest ago, while there are too many rows."""
        while self._count > self._rows_max:
            oldest = next(iter(self._accounts))
            self._note_changes(oldest, self._accounts.pop(oldest).rows(), {})

    def _note_changes(self, did: str, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
        """Count the rows of an account, and have those that differ stored with the next append."""
        self._count += len(after) - len(before)
        for source in before.keys() | after.keys():
            if before.get(source) != after.get(source):
                self._changes[source, did] = after.get(source)

    def _load(self, rows: Rows) -> None:
        """Read the rows of the log. Those of sources that are not in use any more are removed."""
        stored: dict[str, dict[str, bytes]] = {}
        for (source, did), row in rows.items():
            stored.setdefault(did, {})[source] = row
        for did, by_source in stored.items():
            account = _Account()
            *tellers, account.body = by_source.pop(_TOLD, b"").split(b"\0")
            account.tellers = tuple(name.decode() for name in tellers)
            account.said = by_source
            self._accounts[did] = account
            self._count += len(account.rows())
        self._to_tidy = list(reversed(self._accounts))
        self.forget_some(len(self._to_tidy))
        self._make_room()
        self._examine_all()

    def _examine_all(self) -> None:
        """Have `differences` look at all accounts of which a source says something else than was told.

        The list is reversed because it is taken from its end: so what has changed longest ago comes
        first.
        """
        self._unexamined = [did for did, account in reversed(self._accounts.items()) if account.said]


def told(rows: Rows) -> Iterator[tuple[str, bytes]]:
    """Yield what readers were told of the accounts that have rows: their DIDs, and the body of an event."""
    for (source, did), row in rows.items():
        *_, body = row.split(b"\0")
        if source == _TOLD and body:
            yield did, body


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
