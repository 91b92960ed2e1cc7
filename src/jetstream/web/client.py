"""One connection of a subscriber: its socket, what it asked for, and its subscriber in delivery.

    Connection ──▶ Client ──▶ Subscriber (delivery)      after `start`, or after the hello
                     │
                     ├── Outbound       the socket: it calls `on_message`, `resume_at` and `on_end`
                     ├── Dialect        reads messages, and says how a connection is closed
                     ├── DidLists       an uploaded list is in use while the filter in force has it
                     └── Place          the limits of its address, until the end

A client is made by `subscribe` and removed there after its end.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from jetstream.delivery.delivery import Delivery
from jetstream.delivery.subscriber import Close, Subscriber, SubscriberOptions
from jetstream.limits import WebLimits
from jetstream.steps import Steps
from jetstream.web.address_limits import Place
from jetstream.web.dialect import SHUTDOWN, CheckedRequest, Dialect
from jetstream.web.did_lists import DidList, DidLists
from jetstream.web.outbound import Outbound
from jetstream.web.parameters import OptionsUpdate
from jetstream.web.websocket import Breach

# How operators are shown a subscriber that has a WebSocket.
WEBSOCKET_NAME: Final = "websocket"
# What `subscription` has once its own options are not needed any more.
_NO_OPTIONS: Final = SubscriberOptions()
# What a client is told after an error of the server; the log has the traceback.
_OUR_FAULT: Final = Close(1011, "error", "the server failed to read a message: connect again")


class Clients(Protocol):
    """What all clients share. `Subscribe` is it."""

    # Where they subscribe.
    delivery: Delivery
    # Told which lists their filters use.
    did_lists: DidLists
    # How long each may take.
    limits: WebLimits

    def count_failure(self, peer: str) -> None:
        """Count and log the error that is being handled: a fault of the server."""

    def remove(self, client: Client) -> None:
        """Forget a client whose connection has ended."""


class Client:
    """One connection: its socket, what it asked for, and its subscriber in delivery.

    Its methods are called on the event loop's thread: by `Subscribe`, and by the socket as its owner.
    """

    __slots__ = (
        "_clients",
        "_dialect",
        "_did_list",
        "_hello_timeout",
        "_place",
        "id",
        "sink",
        "subscriber",
        "subscription",
        "user",
    )

    def __init__(
        self,
        clients: Clients,
        sink: Outbound,
        dialect: Dialect,
        subscription: CheckedRequest,
        place: Place,
        user: str = "",
    ) -> None:
        # Given out in the order in which clients come, from 1 on.
        self.id = 0
        # The name of its token, if it has one.
        self.user = user
        # What it shares with all clients.
        self._clients = clients
        # Where its events go, and its messages come from. The socket drops its reference to the client at
        # its end.
        self.sink = sink
        # What it has of the limits of its address, until its end.
        self._place = place
        # Reads its messages, and says how it is closed.
        self._dialect = dialect
        # What its URL asked for. The options are forgotten when others replace them: a large filter must not
        # stay here when it is not used any more.
        self.subscription = subscription
        # The uploaded list that the filter in force uses; changed with it.
        self._did_list: DidList | None = None
        # Set once, after the hello if one is required.
        self.subscriber: Subscriber | None = None
        # Closes the connection when no hello comes; None when none is awaited.
        self._hello_timeout: asyncio.TimerHandle | None = None
        sink.owner = self

    @property
    def transport(self) -> str:
        """How it is sent its events: `websocket`, `ndjson` or `sse`."""
        opening = self.subscription.opening
        return WEBSOCKET_NAME if opening is None else opening.transport

    def start(self) -> None:
        """Subscribe, or wait for a hello.

        Called once, after the upgrade and before the first byte of the client is read. A greeting is
        written first. A hello has `hello_timeout_s` seconds to come.
        """
        asked = self.subscription
        if greeting := asked.greeting:
            self.sink.controls += len(greeting)
            self.sink.write(greeting)
        if asked.require_hello:
            self._forget_options()
            timeout_s = self._clients.limits.hello_timeout_s
            text = f"no options_update within {timeout_s:g} s: send one, or leave requireHello out"
            close = Close(1008, "no_hello", text)
            self._hello_timeout = asyncio.get_running_loop().call_later(timeout_s, self.sink.close, close)
        else:
            self._apply(OptionsUpdate(asked.options, None, asked.did_list))

    def close(self, close: Close) -> None:
        """Close the connection, in the words of its dialect.

        Later calls do nothing. For the end of the server, each dialect has a code of its own.
        """
        self.sink.close(self._dialect.shutdown if close == SHUTDOWN else close)

    def on_message(self, message: bytes) -> Steps[None]:
        """Handle a message, in steps. A bad one closes the connection, and the client is told why.

        Called by the socket, one message at a time. What cannot be read changes nothing before the close.
        """
        try:
            update = yield from self._dialect.parse_message(message)
        except Breach as breach:
            self.sink.close(breach.close)
        except Exception:  # noqa: BLE001 - it is logged, and the client is told
            self._clients.count_failure(self.sink.peer)
            self.sink.close(_OUR_FAULT)
        else:
            # Reading a large filter was one part, and to apply it is another.
            yield
            if update is not None and not self.sink.closing:
                # Any update is the hello that is awaited.
                self._stop_timeout()
                self._forget_options()
                self._apply(update)

    def _forget_options(self) -> None:
        """Release the options of the URL: others are in force, or none until the hello."""
        self.subscription = self.subscription._replace(options=_NO_OPTIONS, did_list=None)

    def _apply(self, update: OptionsUpdate) -> None:
        """Start to subscribe with the first options that are awaited; change them with later ones.

        An update replaces all options. The cursor, the bounds and the encoding stay those of the URL.
        """
        delivery, asked = self._clients.delivery, self.subscription
        self._use_list(update.did_list)
        heartbeat_s = update.heartbeat_s or asked.heartbeat_s
        if self.subscriber is None:
            self.subscriber = delivery.subscribe(
                self.sink,
                asked.encoding,
                update.options,
                asked.cursor,
                bounds=asked.bounds,
                heartbeat_s=heartbeat_s,
                replay=self._place.replay,
            )
        else:
            delivery.change(self.subscriber, update.options, heartbeat_s)

    def _use_list(self, did_list: DidList | None) -> None:
        """Use another list, or the same, or none.

        The new one is taken before the old one is released, so that an equal list is in use all the time.
        """
        lists, before = self._clients.did_lists, self._did_list
        self._did_list = did_list
        if did_list is not None:
            lists.use(did_list)
        if before is not None:
            lists.release(before)

    def resume_at(self) -> int:
        """Return the cursor with which the client goes on; before it has begun, where it would begin.

        The socket puts it into the close frame, or into the end of the body.
        """
        delivery = self._clients.delivery
        if self.subscriber is None:
            return delivery.positions(self.subscription.cursor).cursor
        return delivery.resume_at(self.subscriber)

    def on_end(self) -> None:
        """Clean up after the connection.

        Called by the socket, once. The subscriber is removed from delivery in a later turn
        (`Subscribe.remove`).
        """
        self._stop_timeout()
        self._use_list(None)
        self._place.leave()
        self._clients.remove(self)

    def _stop_timeout(self) -> None:
        """Await no hello any more: it has come, or the connection has gone."""
        if self._hello_timeout is not None:
            self._hello_timeout.cancel()
            self._hello_timeout = None
