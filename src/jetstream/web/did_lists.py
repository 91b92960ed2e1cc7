"""Large lists of DIDs, which clients upload once and name in their subscriptions: `POST /filters`.

A list of 100,000 DIDs does not fit into a URL, and a client that reconnects would have to send it again. So
it is kept here under an ID, which is a hash of its DIDs. `filter=<id>` selects it.

A list is in use while a filter in force was made with it. It is kept then, and for `did_lists_kept_s` after
its upload and after its last use. Their number and memory are bounded. Pure.

    POST /filters ──▶ answer ──▶ `_lists`, by ID ◀── find ── a request with `filter=<id>`
                                     │
                       use, release ─┤  in use: counted in `_users`, never dropped
                                     └─ else: in `_kept_until`, dropped when its time is over,
                                        or earlier for another upload that needs the room

A server of several processes has each list in each of them: an upload is passed on, and each tells the
others now and then which lists are in use (`keep`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from typing import Any, Final, NoReturn

import orjson

from jetstream.errors import InvalidParameter
from jetstream.limits import WebLimits
from jetstream.model.did_set import DidSet
from jetstream.model.filter import DIDS_PER_STEP
from jetstream.model.syntax import is_did
from jetstream.steps import Steps
from jetstream.token_bucket import TokenBucket
from jetstream.web.http import Request, Response

# What clients are promised: DIDs of one list, and bytes of its upload. Some may be repeated in it.
DIDS_MAX: Final = 100_000
DIDS_PER_UPLOAD: Final = 2 * DIDS_MAX
BODY_BYTES_MAX: Final = 4 << 20
# A list of DIDs has one or two. Some other keys are ignored.
_BRACKETS_MAX: Final = 100
_NO_LIST: Final = 'is neither a list of DIDs nor {"dids":[…]}'
# Characters of the hash, in hexadecimal: 128 bits.
_ID_CHARS: Final = 32
# Memory in CPython: a `bytes` takes 33 bytes and is rounded up to 16. An entry of a dict takes 24, and 4 of
# its index. When a dict has grown, half of the entries and a third of the index may be in use. Each DID is in
# two dicts: the list's own one, and the index of delivery while the list is in use.
_DID_BYTES: Final = 33 + 15 + 2 * (2 * 24 + 3 * 4)


class NoRoom(Exception):
    """There is no room for another list beside those in use.

    The client gets 503 with `Retry-After`.
    """


@dataclass(frozen=True, slots=True, eq=False)
class DidList:
    """A list of DIDs."""

    # The hash of the DIDs in their order, so equal uploads have equal IDs, on every server.
    id: str
    dids: DidSet
    # Bytes of memory that it counts with: the DIDs and their entries in two dicts.
    size: int


class DidLists:
    """All lists of one server. `clock` gives monotonic seconds.

    It has no lock and no timer: its methods are called on the event loop's thread, and `expire` now and
    then.
    """

    def __init__(self, limits: WebLimits, clock: Callable[[], float]) -> None:
        # The number of lists, their memory, and how long each is kept.
        self._limits = limits
        # The argument that the docstring describes.
        self._clock = clock
        # One token for each upload that is read.
        self._budget = TokenBucket(*limits.did_lists_read, clock())
        # Bytes of memory of all lists, and of those in use.
        self.bytes = self.bytes_in_use = 0
        # Every list, by its ID.
        self._lists: dict[str, DidList] = {}
        # How many filters in force use a list, by its ID; without those that none uses.
        self._users: dict[str, int] = {}
        # Until when those are kept that no filter uses, by ID. The first ends first.
        self._kept_until: dict[str, float] = {}

    def __len__(self) -> int:
        """How many lists there are."""
        return len(self._lists)

    def handle(self, request: Request, _connection: object) -> Steps[Response]:
        """Answer `POST /filters`, in steps.

        Answered with 200 and the ID, 400 for a bad list, 429 if too many were uploaded lately, or 503.
        """
        if not self._budget.spend(self._clock()):
            return self.too_many()
        return (yield from self.answer(request.body))

    def too_many(self) -> Response:
        """Return the response to an upload that is not read, because too many are."""
        return self._later(429, "too many lists are uploaded: try again later")

    def answer(self, body: bytes) -> Steps[Response]:
        """Read an upload, in steps, and return the response to it.

        Called directly for an upload that another process has taken: it needs no token here.
        """
        try:
            kept = yield from self.add(body)
        except InvalidParameter as error:
            return Response.sentence(400, str(error))
        except NoRoom:
            return self._later(503, "there is no room for another list: try again later")
        found = {"id": kept.id, "dids": len(kept.dids), "kept_s": int(self._limits.did_lists_kept_s)}
        return Response(200, orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE), "application/json")

    def _later(self, status: int, text: str) -> Response:
        """Return a response that asks the client to try again."""
        return Response.sentence(status, text, {"Retry-After": str(self._limits.retry_after_s)})

    def find(self, list_id: str) -> DidList:
        """Return the list with an ID. Raises InvalidParameter if there is none."""
        found = self._lists.get(list_id)
        if found is None:
            no_list(list_id)
        return found

    def use(self, dids: DidList) -> None:
        """Count a filter that uses a list, until `release`.

        Each call needs one of `release`. It is called when a filter comes into force.
        """
        self._insert(dids)  # in case it was dropped since it was found
        self._kept_until.pop(dids.id, None)
        users = self._users.get(dids.id, 0)
        self._users[dids.id] = users + 1
        self.bytes_in_use += 0 if users else dids.size

    def release(self, dids: DidList) -> None:
        """Count a filter less. A list that no filter uses is kept for a while, for clients that come back.

        Called when the filter is replaced, or its connection has gone.
        """
        self._users[dids.id] -= 1
        if not self._users[dids.id]:
            del self._users[dids.id]
            self.bytes_in_use -= dids.size
            self._keep(dids)

    @property
    def in_use(self) -> list[str]:
        """The IDs of the lists that filters use."""
        return list(self._users)

    def keep(self, list_ids: Iterable[str]) -> None:
        """Keep lists as if they had been used just now: they are in use in another process.

        IDs that are unknown here, or in use here, are ignored.
        """
        for list_id in list_ids:
            if list_id in self._kept_until:
                self._keep(self._lists[list_id])

    def add(self, body: bytes) -> Steps[DidList]:
        """Read an upload, and keep its list, in steps. Returns the one that is there if it is the same.

        Raises InvalidParameter for a bad upload, and NoRoom.

        The steps are of less than a millisecond, but for two of some milliseconds with 100,000 DIDs.
        """
        read = yield from _read(body)
        if read.id not in self._lists:
            self._make_room(read.size)
            self._insert(self._shared(read))
        if read.id not in self._users:
            self._keep(read)
        return self._lists[read.id]

    def expire(self) -> None:
        """Drop the oldest list if its time is over. To be called now and then.

        It is one in each call: 100,000 DIDs take 2 ms to free.
        """
        if self._kept_until and next(iter(self._kept_until.values())) <= self._clock():
            self._drop_oldest()

    def _insert(self, dids: DidList) -> None:
        """Add a list, unless it is there."""
        if dids.id not in self._lists:
            self._lists[dids.id] = dids
            self.bytes += dids.size

    def _keep(self, dids: DidList) -> None:
        """Keep a list that is not in use for `did_lists_kept_s` seconds from now on."""
        self._kept_until.pop(dids.id, None)
        self._kept_until[dids.id] = self._clock() + self._limits.did_lists_kept_s

    def _shared(self, read: DidList) -> DidList:
        """Return a list with the set of one that has the same DIDs in another order, if there is one.

        Sets are compared wherever subscribers use them. That takes 5 ms, unless they are one object.

        `DidSet` compares hashes first, so lists that differ cost nothing.
        """
        same = (each.dids for each in self._lists.values() if each.dids == read.dids)
        return replace(read, dids=next(same, read.dids))

    def _make_room(self, size: int) -> None:
        """Drop the lists that are not in use, the oldest first, until another has room. Raises NoRoom."""
        most, bytes_max = self._limits.did_lists_max, self._limits.did_lists_bytes_max
        if len(self._users) >= most or self.bytes_in_use + size > bytes_max:
            raise NoRoom
        while len(self._lists) >= most or self.bytes + size > bytes_max:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Drop the list that is kept and was used last the longest ago."""
        list_id = next(iter(self._kept_until))
        del self._kept_until[list_id]
        self.bytes -= self._lists.pop(list_id).size


def no_list(list_id: str) -> NoReturn:
    """Raise InvalidParameter: there is no list with this ID.

    The text says what to do: a client has the list, and can send it again.
    """
    raise InvalidParameter("filter", list_id, "is not known here, or not any more: POST the list to /filters")


def _read(body: bytes) -> Steps[DidList]:
    """Read an upload, in steps. Raises InvalidParameter.

    DIDs that are repeated count once. The hash is of all that was sent, in its order: the same DIDs in
    another order have another ID.
    """
    items = _items(body)
    dids: dict[bytes, None] = {}
    digest = sha256()
    yield
    while some := list(islice(items, DIDS_PER_STEP)):
        for did in some:
            if type(did) is not str or not is_did(did):
                shown = "…" if type(did) in (list, dict) else str(did)
                raise InvalidParameter("body", shown, "is not a DID, such as did:plc:…")
            dids[did.encode()] = None
        digest.update("\n".join([*some, ""]).encode())
        yield
    if not 0 < len(dids) <= DIDS_MAX:
        raise _unusable(f"has {len(dids)} DIDs: there must be 1 to {DIDS_MAX}")
    size = sum(map(len, dids)) + len(dids) * _DID_BYTES
    yield
    # One step: 100,000 take 9 ms.
    return DidList(digest.hexdigest()[:_ID_CHARS], DidSet(dids), size)


def _items(body: bytes) -> Iterator[Any]:
    """Return what should be DIDs: the items of a JSON list, or the words of a text, which has one a line.

    The text is split, or the JSON is read, in one step. So their number is bounded first: 100,000 take 6 ms.
    """
    if not body.lstrip().startswith((b"[", b"{")):
        words = body.split(maxsplit=DIDS_PER_UPLOAD)
        if len(words) > DIDS_PER_UPLOAD:
            raise _unusable(f"has more than {DIDS_MAX} DIDs")
        return (word.decode(errors="replace") for word in words)
    if body.count(b",") >= DIDS_PER_UPLOAD:
        raise _unusable(f"has more than {DIDS_MAX} DIDs")
    if body.count(b"[") + body.count(b"{") > _BRACKETS_MAX:  # a list in lists takes as long as many DIDs
        raise _unusable(_NO_LIST)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _unusable(f"is not JSON: {error}") from None
    dids = value.get("dids") if type(value) is dict else value
    if type(dids) is not list:
        raise _unusable(_NO_LIST)
    return iter(dids)


def _unusable(problem: str) -> InvalidParameter:
    """Return the error of an upload, with what is wrong with it."""
    return InvalidParameter("body", "of the request", problem)
