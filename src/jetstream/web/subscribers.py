"""`/subscribers.json` and `/subscribers/kick`: the subscribers one by one, for operators.

With thousands of subscribers either takes many short steps. Those that come meanwhile are not in a response,
and those that go are left out.

    /subscribers.json?after=&limit=   GET: a page of up to 1,000, by ID; `next` is where the next one begins
    /subscribers/kick                 POST: disconnect some, with a reason that they are told

IDs rise in the order of connections. In a server of several processes, `supervisor` asks each of them, and
puts the answers together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from ipaddress import ip_network
from typing import Any, Final

import orjson

from jetstream.delivery.subscriber import Close
from jetstream.errors import InvalidParameter
from jetstream.settings import Network
from jetstream.steps import Steps
from jetstream.web.client import Client
from jetstream.web.explain import describe_filter
from jetstream.web.http import Request, Response
from jetstream.web.openapi_parts import KICK_ITEMS_MAX, KICK_REASON_CHARS_MAX
from jetstream.web.proxies import in_networks
from jetstream.web.query import decode_query, number_in
from jetstream.web.subscribe import Subscribe

# Bytes of the body of a kick: 1,000 IDs and as many addresses fit.
BODY_BYTES_MAX: Final = 64 << 10
ROWS_MAX: Final = 1_000  # of one response: about 0.5 MB
_ROWS_PER_STEP: Final = 10  # 0.3 ms
# Clients that are passed over in one step, and that are closed in one step.
_LOOKS_PER_STEP: Final = 100
_CLOSES_PER_STEP: Final = 10
# DIDs of a filter that are shown, beside their number.
_DIDS_SHOWN: Final = 3
# What clients are told where the operator gives no reason.
_REASON: Final = "the operator of the server has ended this connection"
_WHO: Final = 'ids, addresses, or "all": true'
_NUMBER: Final = "is not a number"


class Subscribers:
    """The handlers of both routes. `clock` gives monotonic seconds, `now_us` unix microseconds."""

    def __init__(
        self, subscribe: Subscribe, now_us: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        # Where the clients are.
        self._subscribe = subscribe
        # Together they tell when a client has connected: it is kept in monotonic seconds, and shown as a
        # date.
        self._now_us = now_us
        self._clock = clock

    def list(self, request: Request, _connection: object) -> Steps[Response]:
        """Return a page of the subscribers, in steps, the oldest first.

        A number that cannot be read is a 400.
        """
        try:
            after, most = yield from page_of(request)
        except InvalidParameter as error:
            return Response.sentence(400, str(error))
        return (yield from self.page(after, most))

    def page(self, after: int, most: int) -> Steps[Response]:
        """Return up to `most` subscribers whose ID is above `after`, in steps.

        Also called for one process of several. `next` in the body is the ID to go on after; null on the
        last page.
        """
        rows: list[dict[str, object]] = []
        clients = self._subscribe.clients()
        for count, client in enumerate(clients, 1):
            if client.id > after and self._subscribe.has(client):
                if len(rows) == most:
                    break
                rows.append(self._row(client))
                if len(rows) % _ROWS_PER_STEP == 0:
                    yield
            elif count % _LOOKS_PER_STEP == 0:
                yield
        more = bool(rows) and rows[-1]["id"] != clients[-1].id
        body = {"total": len(self._subscribe), "next": rows[-1]["id"] if more else None, "subscribers": rows}
        return Response(
            200, orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE), "application/json", _FIELDS
        )

    def _row(self, client: Client) -> dict[str, object]:
        """Return what there is to say of a subscriber.

        The keys are described in docs/api.md, and in `openapi_parts`. The times are in seconds but for
        `connected_us`.
        """
        sink, subscriber, asked = client.sink, client.subscriber, client.subscription
        progress = None if subscriber is None else self._subscribe.delivery.progress(subscriber)
        options = asked.options if subscriber is None else subscriber.options
        seconds = self._clock() - sink.opened_at
        return {
            "id": client.id,
            "address": sink.peer,
            "token": client.user or None,
            "wire": asked.encoding.renderer.name,
            "transport": client.transport,
            "compression": asked.compression,
            "filter": describe_filter(options, _DIDS_SHOWN),
            "connected_us": self._now_us() - int(seconds * 1e6),
            "state": "waiting" if progress is None else progress.state,
            "lag_s": None if progress is None else round(progress.lag_s, 3),
            "messages": 0 if progress is None else progress.messages,
            "bytes": sink.written,
            "buffered_bytes": sink.buffered,
        }

    def kick(self, request: Request, _connection: object) -> Steps[Response]:
        """Disconnect subscribers, in steps. Return how many, and the IDs of which there is none.

        A client that is closing already is not counted. A body that cannot be used is a 400, and
        disconnects nobody.
        """
        try:
            who = _parse(request.body)
        except InvalidParameter as error:
            return Response.sentence(400, str(error))
        kicked, unknown = 0, set(who.ids)
        for count, client in enumerate(self._subscribe.clients(), 1):
            unknown.discard(client.id)
            if who.wants(client.id, client.sink.peer) and not client.sink.closing:
                client.close(Close(1008, "kicked", who.reason))
                kicked += 1
                if kicked % _CLOSES_PER_STEP == 0:
                    yield
            elif count % _LOOKS_PER_STEP == 0:
                yield
        self._subscribe.note_kicked(kicked, who.reason)
        return Response.json(200, {"kicked": kicked, "unknown_ids": sorted(unknown)})


# The figures are of this moment.
_FIELDS: Final = {"Cache-Control": "no-store"}


def page_of(request: Request) -> Steps[tuple[int, int]]:
    """Return which page of the subscribers a request is for, in steps. Raises InvalidParameter.

    `after` is 0 if it is absent. `limit` is brought into the range from 1 to `ROWS_MAX`, and is the latter
    if it is absent.
    """
    query = yield from decode_query(request.query)
    after, most = number_in(query, "after", _NUMBER) or 0, number_in(query, "limit", _NUMBER)
    return after, ROWS_MAX if most is None else max(1, min(most, ROWS_MAX))


class Kick:
    """Whom to disconnect, and what they are told."""

    def __init__(self, ids: Collection[int], networks: Sequence[Network], reason: str, *, all_: bool) -> None:
        # IDs that are to be disconnected. Some may not exist.
        self.ids = ids
        # Networks whose clients are disconnected, as the server sees their addresses.
        self._networks = networks
        # Whether all are, whatever the other two say.
        self._all = all_
        # What is in the close frame, and in the log.
        self.reason = reason

    def wants(self, id_: int, address: str) -> bool:
        """Tell whether a subscriber is to be disconnected."""
        return self._all or id_ in self.ids or in_networks(address, self._networks)


def _parse(body: bytes) -> Kick:
    """Read the body of a request. Raises InvalidParameter.

    Unknown keys are refused: a wrong one could mean that more are disconnected than the operator wants.
    """
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _bad("of the request", "is not JSON: send " + _WHO) from None
    if not isinstance(asked, dict) or not asked.keys() <= {"ids", "addresses", "all", "reason"}:
        raise _bad("of the request", f"has not only {_WHO} and reason")
    ids, addresses, reason = asked.get("ids", []), asked.get("addresses", []), asked.get("reason", _REASON)
    every = asked.get("all", False)
    if not (_is_list(ids, int) and _is_list(addresses, str) and isinstance(every, bool)):
        raise _bad("of the request", "has a value that is no list of numbers or addresses")
    if not (isinstance(reason, str) and 0 < len(reason) <= KICK_REASON_CHARS_MAX and reason.isprintable()):
        raise InvalidParameter(
            "reason", str(reason), f"is not a text of up to {KICK_REASON_CHARS_MAX} characters"
        )
    if not (ids or addresses or every):
        raise _bad("of the request", f"names nobody: send {_WHO}")
    return Kick(frozenset(ids), list(_networks(addresses)), reason, all_=every)


def _bad(value: str, problem: str) -> InvalidParameter:
    """Return the error of a body that cannot be used."""
    return InvalidParameter("body", value, problem)


def _is_list(value: Any, kind: type) -> bool:
    """Tell whether a value is a list of one type, not too long. A bool is no int here."""
    return (
        isinstance(value, list) and len(value) <= KICK_ITEMS_MAX and all(type(each) is kind for each in value)
    )


def _networks(texts: Iterable[str]) -> Iterator[Network]:
    """Yield the networks that texts name; an address is a network of one. Raises InvalidParameter."""
    for text in texts:
        try:
            yield ip_network(text)
        except ValueError:
            problem = "is not an address or a network, such as 203.0.113.0/24"
            raise InvalidParameter("addresses", text, problem) from None
