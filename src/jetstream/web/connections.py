"""All connections of a server that speak HTTP: their deadlines, their number, and the memory they take.

`Connections` knows in which state each `connection.Connection` is. It ends those that are late, closes some
when there are too many, and runs requests one after another. It counts and logs what is refused.

    pending   receiving or draining, up to `request_timeout_s`    closed for others if none is idle
    idle      between two requests, up to `keep_alive_s`          the longest idle is closed first
    neither   running: the request is complete                    never closed for others

All that is bounded for all clients together is counted here: the number of connections
(`connections_max`), the bytes of incomplete requests, and the bytes of bodies that wait for their handler
(`pending_bytes_max`, for each).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from jetstream.limits import WebLimits
from jetstream.logging_setup import Throttled
from jetstream.metrics import Metrics
from jetstream.scheduling import Worker
from jetstream.web.address_limits import OverLimit
from jetstream.web.guard import Denied
from jetstream.web.http import BadRequest, Request
from jetstream.web.pending import LingeringClose, Pending

# For the connection that has held bytes for the longest, when all together hold too much, and for a body
# for which there is no room. It is passed to `refuse` and never raised, so one object is enough.
OVERLOADED: Final = BadRequest(503, "overload", "there are too many unfinished requests: try again later")


class Member(Protocol):
    """A connection, as `Connections` sees it.

    That is a `connection.Connection`, or an arrival that is not one yet (`arrival`).
    """

    peer: str
    """The address of its client, for the log."""

    def time_out(self) -> None:
        """End it: its deadline has passed. It has to remove itself."""

    def refuse(self, error: BadRequest) -> None:
        """End it with a response, where one can be written."""

    def close(self) -> None:
        """End it once the client has read what was written."""

    def abort(self) -> None:
        """End it at once."""


class Connections:
    """All connections of one server that are not subscriptions.

    Nothing here waits: connections say in which state they are (`mark_…`), and `Pending` calls back when
    they are late. Everything runs on the event loop's thread.
    """

    def __init__(self, metrics: Metrics, limits: WebLimits = WebLimits()) -> None:
        # Read by each connection, too.
        self.limits = limits
        # The connections whose input is discarded after their last response, and how fast.
        self.lingering = LingeringClose(limits)
        # Where refusals, evictions and failures are counted.
        self._metrics = metrics
        # Clients can cause any of these log lines again and again.
        self._throttled = Throttled(structlog.get_logger(__name__))
        # Every connection, whatever its state.
        self._all: dict[Member, None] = {}
        # Those that are receiving or draining. A connection may also be running or idle; never both of these.
        self._pending: Pending[Member] = Pending(
            limits.request_timeout_s, lambda one: one.time_out(), lambda one: one.refuse(OVERLOADED), limits
        )
        self._idle: Pending[Member] = Pending(
            limits.keep_alive_s, lambda one: one.abort(), lambda one: one.abort(), limits
        )
        # Reads on where more than a little has come. A request line of 0.5 MB takes 1 ms to check and parse,
        # and every connection may be ready in the same turn of the event loop.
        self.reading = Worker()
        # Answers the requests of all connections, in the order in which they came.
        self.worker = Worker()
        # Bytes of bodies that are complete, and whose requests are not answered yet.
        self._body_bytes = 0
        # Called when there is one more or less. It does nothing where nobody must know.
        self.changed: Callable[[], None] = _nothing

    def __len__(self) -> int:
        """How many there are."""
        return len(self._all)

    def add(self, connection: Member) -> None:
        """Wait for the first request of a connection. Over `connections_max`, close the oldest one.

        The deadline for a complete request begins now. `changed` is called.
        """
        self._all[connection] = None
        self.changed()
        self._pending.start(connection)
        if len(self._all) > self.limits.connections_max:
            self._evict()

    def remove(self, connection: Member) -> None:
        """Forget a connection that has ended, or is a subscription now.

        Later calls do nothing but call `changed` again.
        """
        self._all.pop(connection, None)
        self.changed()
        self.mark_running(connection)

    def mark_receiving(self, connection: Member, size: int) -> None:
        """Wait for the rest of a request, of which `size` bytes are held.

        The deadline counts from the first call since the connection was idle or running, and is not moved
        by more bytes. Over `pending_bytes_max` for all clients, the one that has held bytes for the longest
        is refused.
        """
        self._idle.remove(connection)
        self._pending.update(connection, size)

    def mark_running(self, connection: Member) -> None:
        """Stop the timeouts of a connection: its request is complete.

        It is neither late nor closed for others until another of these methods is called.
        """
        self._pending.remove(connection)
        self._idle.remove(connection)

    def hold_body(self, size: int) -> bool:
        """Count a body until `release_body`, if there is room for it. Returns whether there is.

        A body of 0 bytes always fits.
        """
        fits = self._body_bytes + size <= self.limits.pending_bytes_max
        self._body_bytes += size if fits else 0
        return fits

    def release_body(self, size: int) -> None:
        """Count a body no more: its request is answered."""
        self._body_bytes -= size

    def mark_idle(self, connection: Member) -> None:
        """Wait for the next request of a connection.

        It is aborted after `keep_alive_s` seconds: nobody waits for a response.
        """
        self._pending.remove(connection)
        self._idle.start(connection)

    def mark_draining(self, connection: Member) -> None:
        """Wait for a client to read its response.

        The time is `request_timeout_s` again, from now on.
        """
        self._idle.remove(connection)
        self._pending.start(connection)

    def count_refusal(self, error: BadRequest, peer: str) -> None:
        """Count and log a request that is refused.

        The label is the reason of the error; the log has the sentence that the client gets.
        """
        self._metrics.bad_requests[error.reason].inc()
        self._throttled.info(f"request: not served, {error.reason}", problem=error.text, peer=peer)

    def count_over_limit(self, over: OverLimit, peer: str) -> None:
        """Count and log a connection that is refused because its address is over a limit."""
        self._metrics.refusals[over.reason].inc()
        self._throttled.info(f"connection: refused, {over.reason}", problem=over.text, peer=peer)

    def count_denied(self, denied: Denied, request: Request, peer: str) -> None:
        """Count and log a request without the token that it needs, or that is for this machine only."""
        self._metrics.refusals["unauthorized"].inc()
        self._throttled.info(
            "request: refused, unauthorized", problem=denied.text, path=request.route, peer=peer
        )

    def count_failure(self, peer: str) -> None:
        """Count and log the error that is being handled: a fault of the server.

        To be called where an exception is handled: the traceback goes to the log.
        """
        self._metrics.failures["request"].inc()
        self._throttled.exception("request: could not be answered", peer=peer)

    def make_room(self) -> bool:
        """Close a few connections, the longest idle first. Returns whether there were any.

        At most `evictions_per_turn`, as many as one turn of a `Listener` accepts.
        """
        return sum(self._evict() for _ in range(self.limits.evictions_per_turn)) > 0

    def _evict(self) -> bool:
        """Close the connection that is idle the longest, else the one that is pending the longest.

        Returns whether there was one. A request that is running is never cut off.
        """
        # An idle client has its response and can connect again without a loss. One that is pending loses a
        # request.
        connection = self._idle.oldest() or self._pending.oldest()
        if connection is None:
            return False
        self._metrics.evicted.inc()
        self._throttled.info("connection: closed to make room for others", peer=connection.peer)
        connection.abort()
        return True

    async def close(self) -> None:
        """Close all connections. Clients have `shutdown_timeout_s` to read their last response."""
        for connection in list(self._all):
            connection.close()
        deadline = time.monotonic() + self.limits.shutdown_timeout_s
        # A connection removes itself when its client has read the end, or has gone.
        while self._all and time.monotonic() < deadline:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.01)
        for connection in list(self._all):
            connection.abort()


# The default of `changed`.
def _nothing() -> None:
    pass
