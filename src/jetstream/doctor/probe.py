"""Asks upstreams what they are: connects, reads one message, and asks a few questions over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohttp

from jetstream.doctor.firehose import Answer, Seen
from jetstream.limits import UpstreamLimits
from jetstream.retry import parse_http_date
from jetstream.upstream.envelope import read_envelope
from jetstream.upstreams import Upstream

RELAY: Final = "https://bsky.network"  # which is asked whether a PDS is crawled
AT_ONCE: Final = 10
_BODY_BYTES_MAX: Final = 64 << 10
_PRIVATE: Final = ("localhost", "127.", "[", "10.", "192.168.")  # no relay could reach these


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds."""

    connect_s: float = 10.0
    message_s: float = 5.0
    question_s: float = 5.0


async def look_at(
    upstreams: Iterable[Upstream],
    patience: Patience = Patience(),
    relay: str = RELAY,
    clock: Callable[[], float] = time.time,
) -> list[Seen]:
    """Ask all upstreams, `AT_ONCE` at a time. `clock` returns unix seconds."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(upstream: Upstream) -> Seen:
        async with turns:
            return await _Probe(upstream, patience, relay, clock).run()

    return await asyncio.gather(*map(one, upstreams))


class _Probe:
    """The questions to one upstream."""

    def __init__(
        self, upstream: Upstream, patience: Patience, relay: str, clock: Callable[[], float]
    ) -> None:
        self._upstream = upstream
        self._patience = patience
        self._relay = relay
        self._clock = clock
        parts = urlsplit(upstream.url)
        self._host = parts.hostname or ""
        self._base = f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}"
        self._date_offset_s: float | None = None  # of the last response

    async def run(self) -> Seen:
        """Connect, and then ask what else the upstream is."""
        dates = aiohttp.TraceConfig()
        dates.on_request_end.append(self._note_date)
        timeout = aiohttp.ClientTimeout(total=self._patience.connect_s)
        async with aiohttp.ClientSession(timeout=timeout, trace_configs=[dates]) as session:
            seen = await self._first_message(session, self._upstream.url)
            date_offset_s = self._date_offset_s
            if seen.answer in {"frame", "silent", "status"}:
                seen = await self._asked(session, seen)
        return seen._replace(date_offset_s=date_offset_s)

    async def _note_date(
        self, _session: aiohttp.ClientSession, _context: SimpleNamespace, end: aiohttp.TraceRequestEndParams
    ) -> None:
        date = parse_http_date(end.response.headers.get("Date", ""))
        if date is not None:
            at = date if date.tzinfo else date.replace(tzinfo=UTC)
            # `Date` is cut to whole seconds: half a second later it is right in the mean.
            self._date_offset_s = at.timestamp() + 0.5 - self._clock()

    async def _first_message(self, session: aiohttp.ClientSession, url: str) -> Seen:
        """Connect to a WebSocket and wait for one message."""
        try:
            async with session.ws_connect(url, max_msg_size=UpstreamLimits().message_bytes_max) as socket:
                return await self._receive(socket)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return self._no_connection(error)

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse) -> Seen:
        began = time.monotonic()
        try:
            message = await socket.receive(self._patience.message_s)
        except TimeoutError:
            return self._seen("silent", after_s=self._patience.message_s)
        return self._read(message, time.monotonic() - began)

    def _no_connection(self, error: Exception) -> Seen:
        """Return what an error of aiohttp means."""
        if isinstance(error, aiohttp.WSServerHandshakeError):
            kind = error.headers.get("Content-Type", "") if error.headers else ""
            return self._seen("status", status=error.status, is_page=error.status == 200 and "html" in kind)
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return self._seen("name", detail=str(error.os_error.strerror or error.os_error))
        if isinstance(error, aiohttp.ClientSSLError):
            return self._seen("tls", detail=str(error))
        if isinstance(error, TimeoutError):
            return self._seen("connect", detail=f"no answer in {self._patience.connect_s:.0f} s")
        if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno:
            return self._seen("connect", detail=os.strerror(error.os_error.errno))
        return self._seen("connect", detail=str(error) or type(error).__name__)

    def _read(self, message: aiohttp.WSMessage, after_s: float) -> Seen:
        if message.type is aiohttp.WSMsgType.BINARY:
            return self._read_frame(message.data, after_s)
        if message.type is aiohttp.WSMsgType.TEXT:
            return self._seen("jetstream" if _is_event(message.data) else "text", after_s=after_s)
        return self._seen("closed", detail=str(message.extra or ""))

    def _read_frame(self, frame: bytes, after_s: float) -> Seen:
        envelope = read_envelope(frame)
        if envelope.type == "error":
            return self._seen("error", detail=f"{envelope.name} {envelope.text}".strip())
        if envelope.type == "unknown":
            return self._seen("unreadable")
        time_s = _unix_s(envelope.fields.get("time"))
        offset_s = None if time_s is None else time_s - self._clock()
        return self._seen("frame", after_s=after_s, time_offset_s=offset_s)

    def _seen(self, answer: Answer, **fields: Any) -> Seen:
        mirrored = self._upstream.kind == "jetstream"
        return Seen(self._upstream.name, self._upstream.url, answer, is_mirrored=mirrored, **fields)

    async def _asked(self, session: aiohttp.ClientSession, seen: Seen) -> Seen:
        """Find out whether it is a PDS, and if it has no firehose, whether it is a Jetstream."""
        description = await self._question(session, f"{self._base}/xrpc/com.atproto.server.describeServer")
        if isinstance(description, dict) and "availableUserDomains" in description:
            return seen._replace(is_pds=True, is_crawled=await self._is_crawled(session))
        if seen.answer == "status":
            return self._seen("jetstream") if await self._takes_subscribers(session) else seen
        return seen

    async def _takes_subscribers(self, session: aiohttp.ClientSession) -> bool:
        """Return whether there is a WebSocket at the path of a Jetstream."""
        try:
            async with session.ws_connect(f"{self._base}/subscribe"):
                return True
        except (aiohttp.ClientError, OSError, ValueError):
            return False

    async def _is_crawled(self, session: aiohttp.ClientSession) -> bool | None:
        if self._host.startswith(_PRIVATE) and self._relay == RELAY:
            return None
        method = "/xrpc/com.atproto.sync.getHostStatus?hostname="
        answer = await self._question(session, f"{self._relay}{method}{quote(self._host)}")
        if not isinstance(answer, dict):
            return None
        return False if answer.get("error") == "HostNotFound" else "hostname" in answer or None

    async def _question(self, session: aiohttp.ClientSession, url: str) -> object:
        """Return the JSON that a URL answers with, whatever its status; None if it does not."""
        timeout = aiohttp.ClientTimeout(total=self._patience.question_s)
        try:
            async with session.get(url, timeout=timeout, allow_redirects=False) as response:
                return json.loads(await response.content.read(_BODY_BYTES_MAX))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, RecursionError):
            return None


def _is_event(text: str) -> bool:
    """Return whether a message is an event of a Jetstream, in any of its wires."""
    with suppress(ValueError, RecursionError):
        event = json.loads(text)
        return isinstance(event, dict) and ("time_us" in event or "payload" in event)
    return False


def _unix_s(text: object) -> float | None:
    """Return the time of a message in unix seconds; None without a time that can be read."""
    if not isinstance(text, str):
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
