"""`/explain`: how the parameters of a subscription are understood, and what they select of the last minute.

It takes the parameters of `/subscribe` and `/events`. The events of the last minute are judged, rendered and
compressed as they are for subscribers, for one explanation after another: some events in each turn of the
event loop, and then a pause.

    request ──▶ a token, room in the queue ──▶ its turn ──▶ `_count`, the last minute ──▶ JSON
                    429                                       │
                                                              └─ `_add`, and a pause, again and again

Bytes are counted without compression, and with this server's own dictionary. docs/api.md describes the
figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Final, Protocol

from jetstream.clock import unix_us
from jetstream.delivery.delivery import Positions
from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.framing import Framing
from jetstream.delivery.framing.websocket import WEBSOCKET
from jetstream.delivery.render_cache import fitting
from jetstream.delivery.renderers import RENDERERS, Renderer
from jetstream.delivery.subscriber import SubscriberOptions
from jetstream.errors import InvalidParameter
from jetstream.eventlog import LogReader
from jetstream.limits import WebLimits
from jetstream.model.batch import Batch
from jetstream.model.did_set import DidSet
from jetstream.model.event import KIND_NAMES
from jetstream.model.filter import EVERYTHING, Filter
from jetstream.model.sample import SAMPLE_WHOLE
from jetstream.model.timestamp import TIME_MAX, to_date
from jetstream.steps import Steps
from jetstream.token_bucket import TokenBucket
from jetstream.web.allowance import Allowance, always
from jetstream.web.did_lists import no_list
from jetstream.web.http import Request, Response
from jetstream.web.parameters import FindList, SubscribeRequest, parse_request

# How much of the log is judged, in microseconds.
MINUTE_US: Final = 60_000_000
# What higher numbers are shown as: `orjson` writes 64 bits.
_NUMBER_MAX: Final = 2**63 - 1
_SHOWN_MAX: Final = 100  # DIDs of a list, and collections that a prefix matches


@dataclass(slots=True)
class _Counts:
    """What was found so far."""

    # Events of the last minute, and those of them that the filter selects and that are not too long.
    events: int = 0
    matched: int = 0
    # Frames of a WebSocket, without compression and with it.
    plain_bytes: int = 0
    zstd_bytes: int = 0
    collections: set[bytes] = field(default_factory=set)  # of all events, up to some number


class Dictionaries(Protocol):
    """The dictionaries of compressed messages (`dictionary.choice`)."""

    @property
    def own_framing(self) -> Framing:
        """The framing with our own."""

    def check(self, dictionary_id: int | None, compress: bool, /) -> None:
        """Raise InvalidParameter for a dictionary that there is not.

        `compress` asks for the public dictionary.
        """


class Explain:
    """The route `/explain`.

    `wire` is the wire of a request that selects none. `positions` returns where a subscription with a cursor
    would begin. `find_list` returns an uploaded list by its ID, or raises InvalidParameter. `now_us` gives
    unix microseconds, `clock` monotonic seconds. `allowed` is what all processes share.
    """

    def __init__(  # noqa: PLR0913 - those from `find_list` on have names
        self,
        log: LogReader,
        wire: str,
        positions: Callable[[int | None], Positions],
        dictionaries: Dictionaries,
        limits: WebLimits = WebLimits(),
        *,
        find_list: FindList = no_list,
        now_us: Callable[[], int] = unix_us,
        clock: Callable[[], float] = time.monotonic,
        allowed: Allowance = always,
    ) -> None:
        # Where the events of the last minute are read.
        self._log = log
        # The arguments that the docstring describes.
        self._wire = wire
        self._positions = positions
        self._dictionaries = dictionaries
        self._limits = limits
        self._find_list = find_list
        self._now_us = now_us
        self._clock = clock
        self._allowed = allowed
        # Records are parsed for content filters, and not kept: the next question is another one.
        self._features = FeatureCache(bytes_max=0)
        # One token for each answer.
        self._budget = TokenBucket(*limits.explanations, clock())
        # Held by the explanation that is being made; how many are made or wait.
        self._turn = asyncio.Lock()
        self._asked = 0

    def handle(self, request: Request, _connection: object) -> Steps[Any]:
        """Read a request, in steps; return its answer, or a response that is being made.

        The coroutine that is returned is awaited by the connection. 400 is for a parameter that cannot be
        used, 429 for too many questions.
        """
        wires = tuple(RENDERERS)
        try:
            asked = yield from parse_request(request, self._find_list, now_us=self._now_us(), wires=wires)
            if asked.compress or asked.dictionary_id is not None:
                self._dictionaries.check(asked.dictionary_id, asked.compress)
        except InvalidParameter as error:
            return Response.sentence(400, str(error))
        full = self._asked >= self._limits.explanations_waiting_max
        if full or not self._budget.spend(self._clock()):
            return self._too_often()
        return self._answer(asked)

    def _too_often(self) -> Response:
        """Return a response that asks the client to try again."""
        again = {"Retry-After": str(self._limits.retry_after_s)}
        return Response.sentence(429, "explanations are asked for too often: try again later", again)

    async def _answer(self, asked: SubscribeRequest) -> Response:
        """Return the explanation, when it is its turn.

        One explanation is made at a time, in the order in which they were asked for.
        """
        self._asked += 1
        try:
            if not await self._allowed():
                return self._too_often()
            async with self._turn:
                return await self._explain(asked)
        finally:
            self._asked -= 1

    async def _explain(self, asked: SubscribeRequest) -> Response:
        """Judge the last minute, and return all that is known of a request."""
        wire = asked.wire or self._wire
        if asked.cursor is not None and asked.cursor > self._log.cursor_max:
            await self._log.look()
        counts = await self._count(asked.options, RENDERERS[wire])
        begins, until = self._positions(asked.cursor).cursor, _at_most(asked.until, TIME_MAX)
        body = {
            "wire": wire,
            "filter": describe_filter(asked.options),
            "maxMessageSizeBytes": _at_most(asked.options.message_bytes_max, _NUMBER_MAX),
            "begins_us": begins,
            "begins": to_date(begins),
            "until_us": until,
            "until": to_date(until),
            "limit": _at_most(asked.limit, _NUMBER_MAX),
            "heartbeat": asked.heartbeat_s,
            "prefixes": await self._matches(asked.options.wanted, counts.collections),
            "last_minute": {
                "events": counts.events,
                "matched": counts.matched,
                "bytes": counts.plain_bytes,
                "zstd_bytes": counts.zstd_bytes,
            },
        }
        return Response.json(200, body)

    async def _count(self, options: SubscriberOptions, renderer: Renderer) -> _Counts:
        """Judge the events of the last minute, some at a time.

        The end is the tip at the start. Events that retention deletes meanwhile are left out.
        """
        counts, stop = _Counts(), self._log.tip + 1
        position, limits = self._now_us() - MINUTE_US, self._limits
        while (batch := await self._log.read(max(position, self._log.floor), stop, EVERYTHING)) is not None:
            # The batch may begin before the minute and end behind the tip.
            first, last = batch.index(position), batch.index(stop)
            while first < last:
                began = self._clock()
                bodies = batch.bodies[first : min(first + limits.explained_per_turn, last)]
                # Large events are taken in smaller numbers: at least one.
                reached = first + fitting(bodies, limits.explained_bytes_per_turn)
                first = self._add(counts, batch, first, reached, options, renderer)
                await self._pause(began)
            position = batch.times[last - 1] + 1
        return counts

    def _add(
        self,
        counts: _Counts,
        batch: Batch,
        first: int,
        last: int,
        options: SubscriberOptions,
        renderer: Renderer,
    ) -> int:
        """Add `batch[first:last]` to the counts, or less where that takes long; return up to where.

        A content filter may have to parse records. It stops at `explained_search_cost`, and the next call
        goes on there.
        """
        chosen = options.wanted.select(batch, first, last)
        if options.content is not None:
            found, judged = self._features.select(
                options.content, batch, chosen, self._limits.explained_search_cost
            )
            last = chosen[judged] if judged < len(chosen) else last
            chosen = found
        counts.events += last - first
        if len(counts.collections) < self._limits.explained_collections_max:
            counts.collections.update(batch.collections[first:last])
        longest = options.message_bytes_max
        rendered = renderer.render(batch, chosen) if chosen else []
        messages = [each for each in rendered if each and (not longest or len(each) <= longest)]
        counts.matched += len(messages)
        counts.plain_bytes += sum(map(len, WEBSOCKET.frames(messages)))
        counts.zstd_bytes += sum(map(len, self._dictionaries.own_framing.frames(messages)))
        return last

    async def _matches(self, wanted: Filter, collections: set[bytes]) -> dict[str, list[str]]:
        """Return which of the collections each prefix matches, without those that are excluded."""
        found = {}
        for prefix in sorted(wanted.prefixes):
            began = self._clock()
            matched = sorted(name for name in collections if name.startswith(prefix))
            some = islice(filter(wanted.wants_collection, matched), _SHOWN_MAX)
            found[prefix.decode() + "*"] = [name.decode() for name in some]
            await self._pause(began)
        return found

    async def _pause(self, began: float) -> None:
        """Leave the event loop to others, after work that began at a time.

        The pause is `explained_pause_ratio` times as long as the work.
        """
        await asyncio.sleep((self._clock() - began) * self._limits.explained_pause_ratio)


def _at_most(value: int | None, most: int) -> int | None:
    """Return a number that is shown, at most `most`; None stays None."""
    return value if value is None or value <= most else most


def describe_filter(options: SubscriberOptions, dids_max: int = _SHOWN_MAX) -> dict[str, object]:
    """Return a filter as JSON: an empty list is no restriction. Of many DIDs, some are shown.

    Also the row of a subscriber has it (`subscribers`). `sample` is in percent; `records` are clauses, of
    each of which a record must have one feature.
    """
    wanted, content = options.wanted, options.content
    return {
        "collections": _names(wanted.collections, wanted.prefixes),
        "excludeCollections": _names(wanted.excluded_collections, wanted.excluded_prefixes),
        "dids": _dids(dids_max, wanted.dids, wanted.listed),
        "excludeDids": _dids(dids_max, wanted.excluded_dids),
        "kinds": sorted(KIND_NAMES[kind] for kind in wanted.kinds),
        "sample": wanted.sample * 100 / SAMPLE_WHOLE,
        "records": [] if content is None else [sorted(clause) for clause in content.clauses],
        "text": [] if content is None else sorted(phrase.strip() for phrase in content.phrases),
    }


def _names(full: frozenset[bytes], prefixes: frozenset[bytes]) -> list[str]:
    """Return collections and prefixes as clients write them, sorted."""
    return sorted([name.decode() for name in full] + [prefix.decode() + "*" for prefix in prefixes])


def _dids(most: int, *parts: DidSet) -> dict[str, object]:
    """Return how many DIDs sets have together, and up to `most` of them."""
    some = islice(chain(*parts), most)
    return {"number": sum(map(len, parts)), "some": [did.decode() for did in some]}
