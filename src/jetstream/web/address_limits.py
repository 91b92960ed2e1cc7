"""Limits per address: how many connections and replays it has, and how fast they begin. Pure.

An IPv6 address counts as its /64, since a client has all of that. An IPv4 address that is mapped into IPv6
counts as IPv4. Addresses of `exempt` networks have no limits.

    visit      a connection, from its beginning to its end
    replay     a visit that reads events of the past, until it has reached the newest one

The table has an entry for each address with a visit, and for each address that is *remembered*: its buckets
are not full yet. So its size is bounded by the connections and by `remembered_max`. Above that, the address
whose buckets are full the soonest is forgotten, which loses the least. An address that is at a limit is the
last to be forgotten: a flood from other addresses does not free it.

Where several processes serve one address (`supervisor`), each tells the others what has changed here
(`changes`), and adds what they tell (`add_elsewhere`).

The rates are token buckets (`token_bucket.Rate`), whose burst is what `address_burst_s` seconds of the
rate allow. A limit that is reached refuses something new; it never ends a connection.

    Addresses ── table ──▶ Usage, one for each address
        └── visit() ──▶ Visit ── replay() ──▶ Replay       each changes its `Usage`, and ends by itself
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from heapq import heappop, heappush
from ipaddress import IPv4Address, IPv6Address, ip_address
from math import ceil
from typing import Final, NamedTuple

from jetstream.limits import WebLimits
from jetstream.settings import Network, Settings
from jetstream.token_bucket import Rate, TokenBucket
from jetstream.web.address_changes import Change, Changes, Key

# For a caller that names limits itself. A server takes those of its own `WebLimits`.
_DEFAULTS: Final = WebLimits()
ADDRESSES_READ: Final = 256  # whose keys are kept
_NETWORK_BITS: Final = 64  # of an IPv6 address: what one client has


@dataclass(frozen=True, slots=True)
class AddressLimits:
    """What one address may have. None is no limit. The last three are described in `limits.WebLimits`."""

    # Visits of one address that are open at the same time, in all processes of the server.
    connections: int | None = None
    # Visits of one address that begin, a second.
    connection_rate: Rate | None = None
    # Subscriptions of one address that have not reached the newest event.
    replays: int | None = None
    # Replays of one address that begin, a second.
    replay_rate: Rate | None = None
    # Bytes a second that all replays of one address are sent together. Above it they are slowed down, and
    # nothing is refused.
    replay_bytes: Rate | None = None
    # Networks without any limits.
    exempt: tuple[Network, ...] = ()
    retry_after_s: int = _DEFAULTS.retry_after_s
    remembered_max: int = _DEFAULTS.addresses_remembered_max
    untold_max: int = _DEFAULTS.address_untold_max

    @classmethod
    def of(cls, settings: Settings, limits: WebLimits) -> AddressLimits:
        """Return the limits that the settings name.

        The settings give rates a second; each gets a burst of at least one.
        """

        def rate(per_s: float | None) -> Rate | None:
            return None if per_s is None else Rate(per_s, max(1, ceil(per_s * limits.address_burst_s)))

        return cls(
            settings.address_connections,
            rate(settings.address_connection_rate),
            settings.address_replays,
            rate(settings.address_replay_rate),
            rate(settings.address_replay_bytes),
            settings.address_exempt,
            limits.retry_after_s,
            limits.addresses_remembered_max,
            limits.address_untold_max,
        )

    @property
    def any(self) -> bool:
        """Whether there is a limit at all. Without one the server keeps no addresses."""
        limits = (self.connections, self.connection_rate, self.replays, self.replay_rate, self.replay_bytes)
        return any(each is not None for each in limits)


class OverLimit(NamedTuple):
    """Why an address may not have more now. `reason` is one of `metrics.REFUSAL_REASONS`."""

    # The label in the metrics.
    reason: str
    # A sentence that names the limit, for the client and the log.
    text: str
    # For `Retry-After`: at least 1.
    retry_after_s: int
    # Whether the connection is closed without a response: too many of this address wait for theirs
    # already.
    silent: bool = False


class Usage:
    """What one address has now. Changed by `Addresses`, `Visit` and `Replay` only."""

    __slots__ = (
        "begun",
        "connections",
        "connections_elsewhere",
        "queued",
        "replayed",
        "replays",
        "replays_elsewhere",
        "sent",
        "untold",
    )

    def __init__(self) -> None:
        # Visits that were not refused and have not ended. The second number: refused ones that have not
        # ended, since their client has not got its refusal yet.
        self.connections = 0
        self.untold = 0
        # Replays that have not ended.
        self.replays = 0
        # The same in other processes of the server, as far as they have told. Changed by `add_elsewhere`
        # only.
        self.connections_elsewhere = 0
        self.replays_elsewhere = 0
        # Connections and replays that have begun, and bytes of replays. Made when they are first needed.
        self.begun: TokenBucket | None = None
        self.replayed: TokenBucket | None = None
        self.sent: TokenBucket | None = None
        # Whether it is in the heap of those that may be forgotten.
        self.queued = False

    @property
    def in_use(self) -> bool:
        """Whether there is a visit, here or elsewhere."""
        return self.connections + self.untold + self.connections_elsewhere + self.replays_elsewhere > 0

    @property
    def full_at(self) -> float:
        """When all of its buckets are full: then it is like a new one.

        In monotonic seconds; 0 where there is no bucket.
        """
        buckets = (self.begun, self.replayed, self.sent)
        return max((each.full_at for each in buckets if each is not None), default=0.0)


class Addresses:
    """The addresses of all clients. `clock` gives monotonic seconds."""

    def __init__(self, limits: AddressLimits, clock: Callable[[], float]) -> None:
        # Do not change while the server runs.
        self.limits = limits
        # Read by each visit and replay, too.
        self.clock = clock
        # Most connections come from a few addresses, such as those of proxies: to read one takes 8 µs.
        self._key_of = lru_cache(ADDRESSES_READ)(partial(key_of, exempt=limits.exempt))
        # What each address has. Each has a visit, or is in the heap.
        self._table: dict[Key, Usage] = {}
        # A heap of the addresses that had no visit when they were put here: when each may be forgotten, in
        # monotonic seconds, the soonest first.
        self._idle: list[tuple[float, Key]] = []
        # What other processes do not know yet. Set once, by the process that shares it; None: there are no
        # others.
        self.changes: Changes | None = None

    def note(
        self,
        key: Key,
        connections: int = 0,
        replays: int = 0,
        begun: int = 0,
        replayed: int = 0,
        sent: int = 0,
    ) -> None:
        """Note what has changed here, if there are other processes.

        Called for each change of a `Usage` that counts for the whole server, and not for what other
        processes have told.
        """
        if self.changes is not None:
            self.changes.note(key, Change(connections, replays, begun, replayed, sent))

    def add_elsewhere(self, key: Key, change: Change) -> None:
        """Add what has changed in another process. It is taken from the buckets whatever they have.

        Called with what another process has noted, some milliseconds later. An address without a
        visit and with full buckets is forgotten at once.
        """
        now, limits = self.clock(), self.limits
        found = self._table.get(key)
        if found is None:
            found = self._table[key] = Usage()
        found.connections_elsewhere += change.connections
        found.replays_elsewhere += change.replays
        found.begun = _taken(found.begun, limits.connection_rate, now, change.begun)
        found.replayed = _taken(found.replayed, limits.replay_rate, now, change.replayed)
        found.sent = _taken(found.sent, limits.replay_bytes, now, change.sent)
        self.end(key, found)

    def __len__(self) -> int:
        """Return how many addresses are known: with a visit, or remembered."""
        return len(self._table)

    def visit(self, address: str) -> Visit | None:
        """Begin a visit, which may be refused: see `Visit.refusal`. None for one without limits.

        `address` is the text of an IP address. Each visit must be ended (`Visit.leave`), also one that is
        refused. Old addresses are forgotten here and at the end of a visit: there is no timer.
        """
        key = self._key_of(address)
        if key is None:
            return None
        now = self.clock()
        self._forget(now)
        found = self._table.get(key)
        if found is None:
            found = self._table[key] = Usage()
        return Visit(self, key, found, self._refusal(key, found, now))

    def _refusal(self, key: Key, found: Usage, now: float) -> OverLimit | None:
        """Return why a visit is refused; None, and a token less, if it is not.

        The number of connections is looked at before the rate, so that a client at that limit spends no
        tokens while it tries again and again.
        """
        over, limits = None, self.limits
        connections = found.connections + found.connections_elsewhere
        if limits.connections is not None and connections >= limits.connections:
            text = f"{limits.connections} connections of one address are open"
            over = _over("address_connections", text, limits.retry_after_s)
        elif limits.connection_rate is not None:
            found.begun = found.begun or TokenBucket(*limits.connection_rate, now)
            if not found.begun.spend(now):
                text = f"more than {limits.connection_rate.per_s:g} connections a second of one address"
                over = _over("address_connection_rate", text, found.begun.wait_s(now))
            else:
                self.note(key, begun=1)
        return over and over._replace(silent=found.untold >= limits.untold_max)

    def end(self, key: Key, found: Usage) -> None:
        """Note that a visit has ended; remember its address for as long as that matters.

        Called at the end of each visit, and after each change elsewhere.
        """
        if not found.in_use and not found.queued:
            found.queued = True
            heappush(self._idle, (found.full_at, key))
        self._forget(self.clock())

    def _forget(self, now: float) -> None:
        """Forget the addresses whose buckets are full, and above the limit those that are nearly so.

        One that has a visit again is put into the heap when that ends. One whose buckets have been used since
        goes back into it.
        """
        while self._idle and (self._idle[0][0] <= now or len(self._idle) > self.limits.remembered_max):
            until, key = heappop(self._idle)
            found = self._table[key]
            if found.in_use:
                found.queued = False
            elif found.full_at > until:
                heappush(self._idle, (found.full_at, key))
            else:
                del self._table[key]


class Visit:
    """A connection of an address. `refusal` is why it is refused; None if it is not.

    It is made when the connection is accepted, or for a client of a proxy when it subscribes. A
    subscription takes it over (`Place`).
    """

    __slots__ = ("_addresses", "_key", "_left", "_usage", "refusal")

    def __init__(self, addresses: Addresses, key: Key, usage: Usage, refusal: OverLimit | None) -> None:
        self._addresses = addresses
        self._key = key
        self._usage = usage
        self.refusal = refusal
        # Whether it has ended: `leave` may be called by several, and counts once.
        self._left = False
        self._count(1)

    def _count(self, change: int) -> None:
        """Count the visit as begun (1) or ended (-1).

        Refused ones are counted apart, and other processes do not know of them.
        """
        if self.refusal is None:
            self._usage.connections += change
            self._addresses.note(self._key, connections=change)
        else:
            self._usage.untold += change

    def leave(self) -> None:
        """End the visit. Later calls do nothing."""
        if not self._left:
            self._left = True
            self._count(-1)
            self._addresses.end(self._key, self._usage)

    def replay(self) -> Replay | OverLimit:
        """Begin a replay, which must end before the visit does; or return why that is refused.

        A refusal has a text and a time, as `refusal` has. No token is spent when the number is at its
        limit.
        """
        usage, limits, now = self._usage, self._addresses.limits, self._addresses.clock()
        if limits.replays is not None and usage.replays + usage.replays_elsewhere >= limits.replays:
            text = f"{limits.replays} replays of one address have not reached the newest event"
            return _over("address_replays", text, limits.retry_after_s)
        if limits.replay_rate is not None:
            usage.replayed = usage.replayed or TokenBucket(*limits.replay_rate, now)
            if not usage.replayed.spend(now):
                text = f"more than {limits.replay_rate.per_s:g} replays a second of one address"
                return _over("address_replay_rate", text, usage.replayed.wait_s(now))
            self._addresses.note(self._key, replayed=1)
        return Replay(self._addresses, self._key, usage)


class Replay:
    """A subscription that reads events of the past: the `Replay` of `delivery.subscriber`."""

    __slots__ = ("_addresses", "_ended", "_key", "_usage")

    def __init__(self, addresses: Addresses, key: Key, usage: Usage) -> None:
        self._addresses = addresses
        self._key = key
        self._usage = usage
        # Whether it has ended: it does so at the newest event, or with the connection.
        self._ended = False
        self._count(1)

    def _count(self, change: int) -> None:
        """Count the replay as begun (1) or ended (-1), here and for the other processes."""
        self._usage.replays += change
        self._addresses.note(self._key, replays=change)

    def charge(self, size: int) -> float:
        """Count bytes that were sent. Return for how many seconds to send nothing.

        The tokens are shared by all replays of the address. The caller (`delivery.catch_up`) pauses before
        its next read; 0 is no pause. Bytes are counted before they are compressed for one connection.
        """
        rate, usage, now = self._addresses.limits.replay_bytes, self._usage, self._addresses.clock()
        if rate is None:
            return 0.0
        usage.sent = usage.sent or TokenBucket(*rate, now)
        self._addresses.note(self._key, sent=size)
        return usage.sent.overspend(now, size)

    def end(self) -> None:
        """End it: the newest event is reached, or the connection has ended. Later calls do nothing."""
        if not self._ended:
            self._ended = True
            self._count(-1)


class Place(NamedTuple):
    """What a subscription has of the limits of its address, until it ends.

    Both are None where the address has no limits. It is held by the `Client`.
    """

    visit: Visit | None = None
    replay: Replay | None = None

    def leave(self) -> None:
        """End the replay, and then the visit. Later calls do nothing."""
        if self.replay is not None:
            self.replay.end()
        if self.visit is not None:
            self.visit.leave()


# Of clients whose address has no limits.
NO_PLACE: Final = Place()


def key_of(address: str, exempt: Sequence[Network]) -> Key | None:
    """Return what an address counts as; None if it has no limits, or is none.

    What is no address has no limits: a Unix socket, or a text that a proxy has sent. The zone of an IPv6
    address (`%eth0`) does not count.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address):
        parsed = parsed.ipv4_mapped or IPv6Address(int(parsed))  # without a zone
    if any(parsed in network for network in exempt):
        return None
    return _key(parsed)


def _key(address: IPv4Address | IPv6Address) -> Key:
    """Return the version of an address, and its number: of IPv6 the network of 64 bits."""
    return address.version, int(address) >> (_NETWORK_BITS if address.version == 6 else 0)


def _over(reason: str, text: str, wait_s: float) -> OverLimit:
    """Return a refusal. The time in it is a whole number of seconds, at least 1."""
    return OverLimit(reason, f"{text}: try again later", max(1, ceil(wait_s)))


def _taken(bucket: TokenBucket | None, rate: Rate | None, now: float, count: int) -> TokenBucket | None:
    """Return a bucket, from which so much is taken.

    Made full if there is none yet. The balance may go below 0. None where there is no such limit, or
    nothing was taken so far.
    """
    if rate is None or not count:
        return bucket
    bucket = bucket or TokenBucket(*rate, now)
    bucket.overspend(now, count)
    return bucket
