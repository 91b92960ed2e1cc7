"""One connection of a subscriber: its socket, what it asked for, and its subscriber in delivery."""

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

WEBSOCKET_NAME: Final = "websocket"
_NO_OPTIONS: Final = SubscriberOptions()
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
    """One connection: its socket, what it asked for, and its subscriber in delivery."""

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
        """Subscribe, or wait for a hello."""
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
        """Close the connection, in the words of its dialect."""
        self.sink.close(self._dialect.shutdown if close == SHUTDOWN else close)

    def on_message(self, message: bytes) -> Steps[None]:
        """Handle a message, in steps. A bad one closes the connection, and the client is told why."""
        try:
            update = yield from self._dialect.parse_message(message)
        except Breach as breach:
            self.sink.close(breach.close)
        except Exception:  # noqa: BLE001 - it is logged, and the client is told
            self._clients.count_failure(self.sink.peer)
            self.sink.close(_OUR_FAULT)
        else:
            yield
            if update is not None and not self.sink.closing:
                self._stop_timeout()
                self._forget_options()
                self._apply(update)

    def _forget_options(self) -> None:
        self.subscription = self.subscription._replace(options=_NO_OPTIONS, did_list=None)

    def _apply(self, update: OptionsUpdate) -> None:
        """Start to subscribe with the first options that are awaited; change them with later ones."""
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
        """Use another list, or the same, or none."""
        lists, before = self._clients.did_lists, self._did_list
        self._did_list = did_list
        if did_list is not None:
            lists.use(did_list)
        if before is not None:
            lists.release(before)

    def resume_at(self) -> int:
        """Return the cursor with which the client goes on; before it has begun, where it would begin."""
        delivery = self._clients.delivery
        if self.subscriber is None:
            return delivery.positions(self.subscription.cursor).cursor
        return delivery.resume_at(self.subscriber)

    def on_end(self) -> None:
        """Clean up after the connection."""
        self._stop_timeout()
        self._use_list(None)
        self._place.leave()
        self._clients.remove(self)

    def _stop_timeout(self) -> None:
        if self._hello_timeout is not None:
            self._hello_timeout.cancel()
            self._hello_timeout = None
