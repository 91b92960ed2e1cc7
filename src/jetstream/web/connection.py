"""A connection while it speaks HTTP: requests in, responses out, until it ends or becomes a WebSocket.

A request is read as a whole and a response is made in one piece, so a connection is in one of four states:

    receiving   its request is not complete, or not one byte of it has come   `request_timeout_s`
    running     its request is being answered                                 none: it waits for the server
    idle        it is between two requests                                    `keep_alive_s`
    draining    its last response is not read yet, or its input is discarded  `request_timeout_s`

    accepted ──▶ receiving ──▶ running ──▶ idle ──▶ receiving ──▶ …
                     │            ├──▶ draining ──▶ receiving, or the end
                     └─ refused ──┘    (or it is a WebSocket, and `Connections` forgets it)

`Connection` is the protocol of one socket. `Connections` keeps them all, with the deadlines and the limits,
and runs their requests one after another. A connection is not read while its own request runs, so what a
client floods with waits in the client's socket.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final, cast

from jetstream.steps import Steps
from jetstream.token_bucket import TokenBucket
from jetstream.web.address_limits import Visit
from jetstream.web.arrival import Arrived
from jetstream.web.connections import OVERLOADED, Connections
from jetstream.web.head_reader import NO_BODIES, HeadReader
from jetstream.web.http import BadRequest, Request, Response
from jetstream.web.peers import Peers
from jetstream.web.pending import end_output
from jetstream.web.proxies import client_of, unmapped

# What a request is answered with: a response, now or when it is made; None when the handler has taken the
# connection over (`Connection.upgrade`).
Answer = Response | Coroutine[Any, Any, Response | None] | None
# Answers a request in steps.
Handler = Callable[[Request, "Connection"], Steps[Answer]]

# Tells a client that waits for it to send the body (RFC 9110, section 15.2.1).
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(asyncio.Protocol):
    """One connection. The event loop calls its methods without a leading underscore up to `data_received`.

    `handler` answers its requests. `peers` knows which proxies are believed what they say about clients, and
    what the others may have. `bodies` are the paths that take a body, with the most bytes of one. `arrived`
    is what is known already; None: the connection is as it was accepted.
    """

    def __init__(
        self,
        connections: Connections,
        handler: Handler,
        peers: Peers = Peers(),
        bodies: Mapping[str, int] = NO_BODIES,
        arrived: Arrived | None = None,
    ) -> None:
        # Told of each change of state; has the limits that all connections share.
        self._connections = connections
        # Answers each request, in steps that `Connections.worker` runs.
        self._handler = handler
        # Read by handlers that take a place of the limits of an address.
        self.peers = peers
        # What a PROXY head and TLS have said; read once, by `connection_made`.
        self._arrived = arrived
        # Holds what came of the next requests. Replaced by an empty one when nothing more is read.
        self._reader = HeadReader(connections.limits, bodies)
        # One token for each request of this connection, whatever it asks for.
        self._requests = TokenBucket(*connections.limits.requests, time.monotonic())
        # Whether a request is being answered; reading is paused meanwhile.
        self._running = False
        # Whether what has come waits to be read; reading is paused meanwhile.
        self._queued = False
        # Makes the response to the request that is being answered, if that takes more than steps.
        self._task: asyncio.Task[None] | None = None
        # Whether the write buffer is full: no request is answered until it has drained.
        self._full = False
        # Whether no more requests are read: the last response is written, or none will be.
        self._ending = False
        # Bytes that were read after that.
        self._discarded = 0
        # Where it came from: the address of the peer, or what a head of the PROXY protocol says.
        self.origin = ""
        # Address of the client, for the log: the peer's, or what a trusted proxy says in its last request.
        self.peer = ""
        # The name of the token that its last request had.
        self.user = ""
        # Whether it has TLS.
        self._secure = False
        # What it has of the limits of its address, if there are any; a subscription takes it over.
        self.visit: Visit | None = None
        # From `connection_made` on.
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request.

        Called by the event loop, once. A connection over the limits of its address is kept until its first
        request, which gets the refusal as a response; it is aborted at once where too many of that address
        wait for theirs.
        """
        self.transport = cast(asyncio.Transport, transport)
        arrived = self._arrived
        if arrived is None:
            self.origin = unmapped((transport.get_extra_info("peername") or ("",))[0])
            self.visit = self.peers.arrive(self.origin)
        else:
            self.origin, self.visit = arrived.peer, arrived.visit
            self._secure = arrived.secure
            arrived.made()
        self.peer = self.origin
        self._connections.add(self)
        if self.visit is not None and (over := self.visit.refusal) is not None and over.silent:
            self._connections.count_over_limit(over, self.origin)
            self.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget the connection, and what was done for it.

        Called by the event loop, once, unless the transport was handed over. A response that is being made
        is cancelled: nobody reads it.
        """
        self._ending = True
        if self._task is not None:
            self._task.cancel()
        self._connections.remove(self)
        if self.visit is not None:
            self.visit.leave()

    def pause_writing(self) -> None:
        """Answer no more requests until the client has read its responses.

        Called by the event loop when the write buffer is above its limit. A response that is being made is
        still written: there is one at most.
        """
        self._full = True

    def resume_writing(self) -> None:
        """Go on with the next request.

        Called by the event loop.
        """
        self._full = False
        if not (self._ending or self._running or self._queued):
            self._next()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request, or of several.

        Called by the event loop. Small pieces are parsed at once, larger ones in a turn of
        `Connections.reading`, with the reading of the socket paused.
        """
        if self._ending:
            self._discarded += len(data)
            self._connections.lingering.discard(self.transport, self._discarded)
            return
        self._reader.feed(data)
        if self._running or self._full or self._queued:
            return
        if len(self._reader) <= self._connections.limits.bytes_per_read:
            self._next()
        else:
            self._queued = True
            self.transport.pause_reading()
            self._connections.reading.put(self._next_later())

    def _next_later(self) -> Steps[None]:
        """Do `_next` in a turn of `Connections.reading`, unless the connection has ended or waits by then."""
        yield from ()
        self._queued = False
        if not (self._ending or self._running or self._full):
            self._next()

    def _next(self) -> None:
        """Run the next request, or wait for the rest of it.

        Requests that came at once (pipelining, RFC 9112, section 9.3.2) are answered one after another:
        this is called after each response.
        """
        try:
            request = self._reader.next()
        except BadRequest as error:
            self.refuse(error)
            return
        # The client has gone; what it still asked for is of no use.
        if self.transport.is_closing():
            return
        if request is not None:
            self._run(request)
            return
        self.transport.resume_reading()
        if self._reader.continues:
            self._write(_CONTINUE)
        if self._reader.in_request:
            self._connections.mark_receiving(self, len(self._reader))

    def _run(self, request: Request) -> None:
        """Put a request into the queue of all connections, and read nothing more until it is answered.

        It is refused here for the rate of the connection (429), and for the memory of all bodies (503).
        From here on the connection has no deadline: it waits for the server.
        """
        if not self._requests.spend(time.monotonic()):
            rate = self._connections.limits.requests.per_s
            text = f"more than {rate:g} requests a second on one connection: ask less often"
            self.refuse(BadRequest(429, "flood", text))
            return
        if not self._connections.hold_body(len(request.body)):
            self.refuse(OVERLOADED)
            return
        self._running = True
        if self._secure:
            request = request._replace(scheme="https")
        # Each request may be of another client, where a proxy uses one connection for many.
        self.peer, request = client_of(request, self.origin, self.peers.trusted)
        self._connections.mark_running(self)
        self.transport.pause_reading()
        self._connections.worker.put(self._answer(request))

    def _answer(self, request: Request) -> Steps[None]:
        """Answer a request, in steps. An error of the handler is logged, and the client gets a 500.

        A handler that raises BadRequest has the request refused, which ends the connection.
        """
        answer: Answer = None
        try:
            if self._ending:
                return
            answer = yield from self._handler(request, self)
        except BadRequest as error:
            self.refuse(error)
            return
        except Exception:  # noqa: BLE001 - it is logged, and the client is told
            answer = self._failure()
        finally:
            if answer is None or isinstance(answer, Response):  # else it is needed until that is made
                self._connections.release_body(len(request.body))
        if answer is None or isinstance(answer, Response):
            self._finish(request, answer)
        else:
            self._task = asyncio.get_running_loop().create_task(self._answer_later(request, answer))
            self._task.add_done_callback(partial(self._forget, request, answer))

    def _forget(self, request: Request, answer: Coroutine[Any, Any, object], _task: object) -> None:
        """Release a request whose response was made, or is not needed any more: it may not have begun.

        Called when the task has ended, also by a cancellation before its first step. A coroutine that was
        never awaited is closed, so that Python does not warn of it.
        """
        answer.close()
        self._connections.release_body(len(request.body))

    async def _answer_later(self, request: Request, answer: Coroutine[Any, Any, Response | None]) -> None:
        """Answer a request once its response is made. An error is handled as in `_answer`."""
        try:
            response = await answer
        except BadRequest as error:
            self._task = None
            self.refuse(error)
            return
        except Exception:  # noqa: BLE001 - it is logged, and the client is told
            response = self._failure()
        self._task = None
        self._finish(request, response)

    def _failure(self) -> Response:
        """Count and log the error that is being handled; return the response."""
        self._connections.count_failure(self.peer)
        return Response.sentence(500, "the server failed to answer", closing=True)

    def _finish(self, request: Request, response: Response | None) -> None:
        """Leave the state `running`, and respond. None: another protocol has the transport now.

        Nothing is written where the connection was ended meanwhile, by `close` or by an error.
        """
        self._running = False
        if response is not None and not self._ending:
            self._respond(request, response)

    def _respond(self, request: Request, response: Response) -> None:
        """Write a response. Then go on with the next request, or end the connection.

        HEAD gets the header fields of GET and no body. Without keep-alive the connection ends. With a full
        write buffer it drains first: `resume_writing` goes on.
        """
        keep_alive = request.keep_alive and not response.closing
        with_body = request.method != "HEAD"
        self._write(response.encode(time.time(), keep_alive=keep_alive, with_body=with_body))
        if not keep_alive:
            self._end()
        elif self._full:
            self._connections.mark_draining(self)
        else:
            self._connections.mark_idle(self)
            self._next()

    def _write(self, data: bytes) -> None:
        """Write, unless the client has gone: uvloop raises RuntimeError for a transport that is closed."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def upgrade(self, protocol: asyncio.Protocol, answer: bytes) -> bytes:
        """Hand the transport over to another protocol, after `answer` to its handshake.

        Returns what the client has sent after its request. Reading is paused. The caller has taken its
        visit over. The connection is not one of `Connections` any more: neither its deadlines nor its
        number.
        """
        self._ending = True
        self._connections.remove(self)
        self.visit = None
        self.transport.set_protocol(protocol)
        self.transport.write(answer)
        return self._reader.rest()

    def refuse(self, error: BadRequest) -> None:
        """Respond with one sentence, count and log the refusal, and end the connection.

        What follows on the connection is discarded: after an error, the start of the next request is not
        known.
        """
        self._connections.count_refusal(error, self.peer)
        response = Response.sentence(error.status, error.text, error.headers)
        self._write(response.encode(time.time(), keep_alive=False))
        self._end()

    def time_out(self) -> None:
        """End a connection whose deadline has passed: with a response, if a part of a request has come."""
        if self._reader.in_request and not self._ending and not self._full:
            timeout_s = self._connections.limits.request_timeout_s
            self.refuse(
                BadRequest(
                    408, "timeout", f"the request was not whole within {timeout_s:g} s: send it faster"
                )
            )
        else:
            self.abort()

    def _end(self) -> None:
        """End the output after the last response, and discard what still comes (see `LingeringClose`).

        An empty reader takes the place of the old one, whose buffer is freed.
        """
        self._ending = True
        self._reader = HeadReader()
        self._connections.mark_draining(self)
        if not self.transport.is_closing():
            end_output(self.transport)
            self.transport.resume_reading()

    def close(self) -> None:
        """Close the connection once the client has read what was written.

        Called when the server stops. What is written is sent first, and a request that is running gets no
        response.
        """
        self._ending = True
        self.transport.close()

    def abort(self) -> None:
        """Close the connection at once; what the client has not read is lost."""
        self._ending = True
        self._connections.remove(self)
        self.transport.abort()
