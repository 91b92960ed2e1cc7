"""Asks upstreams what they are: connects, reads one message, and asks a few questions over HTTP.

    connect ─▶ one message ─▶ is it a PDS? ─▶ does a relay crawl it? ─▶ Seen
                                      └ no WebSocket: is it a Jetstream? ─▶ Seen

What an upstream sends is not trusted: messages and bodies have a bound, and each step a timeout. Nothing
is judged here (see `firehose`), and no error ends a check: each is an answer. A question that is not
answered leaves what it is about unknown.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohttp

from jetstream.doctor.firehose import Answer, Seen
from jetstream.limits import UpstreamLimits
from jetstream.retry import parse_http_date
from jetstream.settings.values import PRIVATE
from jetstream.upstream.envelope import read_envelope
from jetstream.upstreams import Upstream

# The public relay, which is asked whether a PDS is crawled.
RELAY: Final = "https://bsky.network"
# Upstreams that are asked at the same time.
AT_ONCE: Final = 10
# Bytes of a response that are read. What is longer is no JSON then, and counts as no answer.
_BODY_BYTES_MAX: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for each step, in seconds."""

    # For the connection, with DNS, TLS and the handshake of the WebSocket.
    connect_s: float = 10.0
    # For the first message after it. A relay of the network sends hundreds a second.
    message_s: float = 5.0
    # For each response to a question over HTTP.
    question_s: float = 5.0


async def look_at(
    upstreams: Iterable[Upstream],
    patience: Patience = Patience(),
    relay: str = RELAY,
    clock: Callable[[], float] = time.time,
) -> list[Seen]:
    """Ask all upstreams, `AT_ONCE` at a time. `clock` returns unix seconds.

    The answers are in the order of the upstreams. `relay` is the base URL of the relay that is asked
    about PDSes. One upstream takes 25 seconds at most.
    """
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(upstream: Upstream) -> Seen:
        """Ask one upstream when it is its turn."""
        async with turns:
            return await _Probe(upstream, patience, relay, clock).run()

    return await asyncio.gather(*map(one, upstreams))


class _Probe:
    """The questions to one upstream."""

    def __init__(
        self, upstream: Upstream, patience: Patience, relay: str, clock: Callable[[], float]
    ) -> None:
        # What is asked, and with what: none of these changes.
        self._upstream = upstream
        self._patience = patience
        self._relay = relay
        self._clock = clock
        parts = urlsplit(upstream.url)
        # The host of the upstream's URL, and its base URL for HTTP: the same server answers both.
        self._host = parts.hostname or ""
        self._base = f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}"
        # Seconds by which the clock of the last response was ahead of ours; None until one had a `Date`.
        self._date_offset_s: float | None = None

    async def run(self) -> Seen:
        """Connect, and then ask what else the upstream is.

        Questions are only asked where they can change the answer: not of what cannot be reached.
        """
        dates = aiohttp.TraceConfig()
        dates.on_request_end.append(self._note_date)
        timeout = aiohttp.ClientTimeout(total=self._patience.connect_s)
        async with aiohttp.ClientSession(timeout=timeout, trace_configs=[dates]) as session:
            seen = await self._first_message(session, self._upstream.url)
            # That of the upstream's own handshake. Responses after it may be those of the relay.
            date_offset_s = self._date_offset_s
            if seen.answer in {"frame", "silent", "status"}:
                seen = await self._asked(session, seen)
        return seen._replace(date_offset_s=date_offset_s)

    async def _note_date(
        self, _session: aiohttp.ClientSession, _context: SimpleNamespace, end: aiohttp.TraceRequestEndParams
    ) -> None:
        """Note what the clock of a response says, if it has a `Date`.

        aiohttp calls it when the head of a response has been read.
        """
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
        """Wait for one message of a connection that was accepted."""
        began = time.monotonic()
        try:
            message = await socket.receive(self._patience.message_s)
        except TimeoutError:
            return self._seen("silent", after_s=self._patience.message_s)
        return self._read(message, time.monotonic() - began)

    def _no_connection(self, error: Exception) -> Seen:
        """Return what an error of aiohttp means.

        The order matters: an error of DNS or TLS is a ClientConnectorError, too.
        """
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
        """Return what a message says of its sender, after so many seconds.

        A close, or an error of the connection, is a message of aiohttp as well.
        """
        if message.type is aiohttp.WSMsgType.BINARY:
            return self._read_frame(message.data, after_s)
        if message.type is aiohttp.WSMsgType.TEXT:
            return self._seen("jetstream" if _is_event(message.data) else "text", after_s=after_s)
        return self._seen("closed", detail=str(message.extra or ""))

    def _read_frame(self, frame: bytes, after_s: float) -> Seen:
        """Return what a binary message is: a message of a firehose, an error of one, or something else."""
        envelope = read_envelope(frame)
        if envelope.type == "error":
            return self._seen("error", detail=f"{envelope.name} {envelope.text}".strip())
        if envelope.type == "unknown":
            return self._seen("unreadable")
        time_s = _unix_s(envelope.fields.get("time"))
        offset_s = None if time_s is None else time_s - self._clock()
        return self._seen("frame", after_s=after_s, time_offset_s=offset_s)

    def _seen(self, answer: Answer, **fields: Any) -> Seen:
        """Return an answer with the name and the URL of the upstream."""
        mirrored = self._upstream.kind == "jetstream"
        return Seen(self._upstream.name, self._upstream.url, answer, is_mirrored=mirrored, **fields)

    async def _asked(self, session: aiohttp.ClientSession, seen: Seen) -> Seen:
        """Find out whether it is a PDS, and if it has no firehose, whether it is a Jetstream.

        A relay may answer `describeServer`, too. Only a PDS has `availableUserDomains` in its answer.
        """
        description = await self._question(session, f"{self._base}/xrpc/com.atproto.server.describeServer")
        if isinstance(description, dict) and "availableUserDomains" in description:
            return seen._replace(is_pds=True, is_crawled=await self._is_crawled(session))
        if seen.answer == "status":
            return self._seen("jetstream") if await self._takes_subscribers(session) else seen
        return seen

    async def _takes_subscribers(self, session: aiohttp.ClientSession) -> bool:
        """Return whether there is a WebSocket at the path of a Jetstream. It is closed at once."""
        try:
            async with session.ws_connect(f"{self._base}/subscribe"):
                return True
        except (aiohttp.ClientError, OSError, ValueError):
            return False

    async def _is_crawled(self, session: aiohttp.ClientSession) -> bool | None:
        """Return whether the relay crawls this host; None: it does not say.

        The public relay is not told of private hosts. It answers HostNotFound for a host that it does
        not know (`com.atproto.sync.getHostStatus`).
        """
        if self._relay == RELAY and is_private(self._host):
            return None
        method = "/xrpc/com.atproto.sync.getHostStatus?hostname="
        answer = await self._question(session, f"{self._relay}{method}{quote(self._host)}")
        if not isinstance(answer, dict):
            return None
        return False if answer.get("error") == "HostNotFound" else "hostname" in answer or None

    async def _question(self, session: aiohttp.ClientSession, url: str) -> object:
        """Return the JSON that a URL answers with, whatever its status; None if it does not.

        Redirects are not followed: the answer would be that of another host.
        """
        timeout = aiohttp.ClientTimeout(total=self._patience.question_s)
        try:
            async with session.get(url, timeout=timeout, allow_redirects=False) as response:
                return json.loads(await _beginning(response.content, _BODY_BYTES_MAX))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, RecursionError):
            return None


async def _beginning(content: aiohttp.StreamReader, bytes_max: int) -> bytes:
    """Return the first bytes of a body. One `read` returns only what has arrived."""
    data = b""
    while len(data) < bytes_max and (part := await content.read(bytes_max - len(data))):
        data += part
    return data


def is_private(host: str) -> bool:
    """Return whether no relay can reach a host, nor should be told of it."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in PRIVATE)


def _is_event(text: str) -> bool:
    """Return whether a message is an event of a Jetstream, in any of its wires."""
    with suppress(ValueError, RecursionError):
        event = json.loads(text)
        return isinstance(event, dict) and ("time_us" in event or "payload" in event)
    return False


def _unix_s(text: object) -> float | None:
    """Return the time of a message in unix seconds; None without a time that can be read.

    The protocol has times in UTC with a zone. One without is taken for UTC.
    """
    if not isinstance(text, str):
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
