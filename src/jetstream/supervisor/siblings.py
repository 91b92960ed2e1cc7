"""A child's end: what it knows of the other processes of its server, and they of it.

    supervisor ◀── heartbeats, load, usage, lists, last figures ── `Siblings` ──▶ `Service`: stop, reload
               ──▶ setup, stop, reload, usage and lists of others ─▶    │
               ◀─▶ questions: `Covering` asks, `asked` answers           └──▶ `Taking`: connections

A server of one process has none of this: `app` and `endpoints` have None in its place. Everything runs
in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

from jetstream.clock import unix_us
from jetstream.limits import SupervisorLimits
from jetstream.runtime import FileShortage
from jetstream.scheduling import Worker
from jetstream.status import Status
from jetstream.steps import Steps
from jetstream.supervisor.channel import Channel, ChannelError, ChannelMessage
from jetstream.supervisor.covering import Covering
from jetstream.supervisor.shared_limits import packed, unpacked
from jetstream.supervisor.snapshot import snapshot
from jetstream.supervisor.taking import Taking
from jetstream.supervisor.view import KICK, LIST, SNAPSHOT, SPEND, UPLOAD
from jetstream.web.address_changes import Changes
from jetstream.web.address_limits import Addresses
from jetstream.web.allowance import Allowance
from jetstream.web.did_lists import DidLists
from jetstream.web.http import Request, Response
from jetstream.web.server import Routes, Server
from jetstream.web.subscribe import Subscribe
from jetstream.web.subscribers import Subscribers

if TYPE_CHECKING:
    from jetstream.app import Service
    from jetstream.endpoints import Endpoints

# Header of a response of status 503. The supervisor answers again, or a process is replaced, within a
# second or so.
_RETRY: Final = {"Retry-After": "1"}

logger = structlog.get_logger(__name__)


class _Served(NamedTuple):
    """What an edge serves.

    The ingest has none of it, and an edge has it from `take` on.
    """

    servers: Sequence[Server]
    subscribe: Subscribe
    subscribers: Subscribers
    did_lists: DidLists
    addresses: Addresses | None  # None: there are no limits for them


class Siblings:
    """The other processes, as a child sees them. `sock` is that on which it gets connections.

    Made before the channel is connected. Until `serve`, only the setup is waited for, and a message to
    stop.
    """

    def __init__(self, sock: socket.socket, limits: SupervisorLimits = SupervisorLimits()) -> None:
        # To the supervisor.
        self.channel = Channel(self, limits)
        # Replaced by those of the supervisor, once the setup has come.
        self.limits = limits
        # Set with the first message, which is the setup; cancelled if the supervisor ends before.
        self.setup: asyncio.Future[ChannelMessage] = asyncio.get_running_loop().create_future()
        # Given to `Taking`. The ingest has one as well, on which nothing comes.
        self._sock = sock
        # When this process began, in unix microseconds: a figure of its status.
        self._started_us = unix_us()
        # Runs what other processes ask for, some steps in each turn.
        self._worker = Worker()
        # From `serve` on: the service of this process.
        self._service: Service | None = None
        # Whether files have changed since it began to start.
        self._must_reload = False
        # Whether it is to end, which may be known before there is a service.
        self._stopped = False
        # From `take` on, at an edge: what is served here, and what gets its connections.
        self._served: _Served | None = None
        self._taking: Taking | None = None
        # What has changed of addresses, where they have limits.
        self._changes: Changes | None = None
        # The end of the pause after which the supervisor is told; None: it knows everything.
        self._telling: asyncio.TimerHandle | None = None
        # The end of a longer pause, after which it is told once more; None: that is not needed.
        self._again: asyncio.TimerHandle | None = None
        # Answers for all processes.
        self._covering = Covering(self._ask, self._upload)

    # --- the life of the process ---

    async def serve(self, service: Service, shortage: FileShortage | None) -> None:
        """Run a service until it ends, and tell the supervisor how it is.

        Raises what `Service.run` raises.

        It returns at once if the supervisor has said `stop` or has ended meanwhile. The heartbeat
        begins here. The supervisor allows `start_s` seconds of silence until the process is ready, and
        `hang_s` from then on.
        """
        self._service = service
        if self._stopped:
            return
        helpers = [asyncio.create_task(each) for each in (self._beat(), self._report_ready(service))]
        try:
            await service.run(shortage)
        finally:
            for each in helpers:
                each.cancel()

    def leave(self) -> None:
        """Stop the service, and get no more connections: other edges do.

        Called at the first SIGTERM or SIGINT of this process. The supervisor replaces it, unless it
        stops, too.
        """
        self.channel.tell("leaving")
        self._stop()

    def _stop(self) -> None:
        """Stop the service, now or as soon as there is one."""
        self._stopped = True
        if self._service is not None:
            self._service.stop()

    def say_last(self) -> None:
        """Tell the supervisor the last figures, so that nothing is lost of the counters.

        It is the message before the end of the channel. An error is logged: the figures of the last
        snapshot must do then.
        """
        if self._service is not None and self._service.started.is_set():
            try:
                self.channel.tell("last", snapshot(self._service, self._started_us))
            except Exception:
                logger.exception("the last figures of the process are lost")

    async def _beat(self) -> None:
        """Tell the supervisor every `heartbeat_s` seconds that the event loop runs, until cancelled.

        An edge also tells now and then which lists of DIDs it uses, so that other edges keep them.
        """
        beats, every_s = 0, self.limits.heartbeat_s
        while True:
            self.channel.tell("alive")
            await asyncio.sleep(every_s)
            beats += 1
            if self._served is not None and beats % max(1, round(self.limits.lists_every_s / every_s)) == 0:
                self._tell_lists(self._served.did_lists.in_use)

    async def _report_ready(self, service: Service) -> None:
        """Tell the supervisor that the service has started, and read files again that changed meanwhile."""
        await service.started.wait()
        if self._must_reload:
            service.reload()
        self.channel.tell("ready")

    def _reload(self) -> None:
        """Read the files again that settings name, now or once the service has started."""
        if self._service is not None and self._service.started.is_set():
            self._service.reload()
        else:
            self._must_reload = True

    def _tell_lists(self, list_ids: list[str]) -> None:
        """Tell which lists of DIDs are in use here, by their IDs; nothing is sent for none."""
        if list_ids:
            self.channel.tell("lists", {"ids": list_ids})

    # --- what `Channel` calls ---

    def told(self, message: ChannelMessage) -> None:
        """Take what the supervisor tells.

        The kinds are those that `Supervisor` and `Process` send. Before there is something that is
        served, what concerns other edges is ignored: it is sent again after `ready`.
        """
        kind, fields, served = message.kind, message.fields, self._served
        if kind == "setup":
            self.setup.set_result(message)
        elif kind == "stop":
            self._stop()
        elif kind == "reload":
            self._reload()
        elif served is not None:
            self._told_of_others(kind, fields, message.body, served)

    def _told_of_others(self, kind: str, fields: Mapping[str, Any], body: bytes, served: _Served) -> None:
        """Take what there is to know of other edges.

        These are `subscribers`: how many the others have; `usage`: what has changed of addresses at
        them; `lists`: IDs of lists that they use; and `list`: an upload, which is read here in steps.
        Its result is of no interest, as the client has its answer from another edge or at another time.
        """
        if kind == "subscribers":
            served.subscribe.elsewhere = fields["elsewhere"]
        elif kind == "usage" and served.addresses is not None:
            for key, change in unpacked(fields["changes"]):
                served.addresses.add_elsewhere(key, change)
        elif kind == "lists":
            served.did_lists.keep(fields["ids"])
        elif kind == "list":
            self._worker.put(_ignoring_result(served.did_lists.answer(body)))

    async def asked(self, message: ChannelMessage) -> ChannelMessage:
        """Answer what the supervisor asks.

        A snapshot may raise OSError while the disk fails, which the channel logs. All other questions
        are of `/subscribers.json`, `/subscribers/kick` and `/filters`. Their answers are whole
        responses, and 503 while nothing is served here.
        """
        if message.kind == SNAPSHOT and self._service is not None:
            return ChannelMessage("", snapshot(self._service, self._started_us))
        if self._served is None:
            return ChannelMessage("", {"status": 503, "type": "text/plain; charset=utf-8"}, b"not ready\n")
        return _message(await self._run(self._local(message, self._served)))

    def lost(self) -> None:
        """End: the supervisor has ended.

        The service stops as it does for a signal, with its subscribers closed in order, if the system has not
        killed this process before (`end_with_parent`).
        """
        self._stop()
        if not self.setup.done():
            self.setup.cancel()

    def _local(self, message: ChannelMessage, served: _Served) -> Steps[Response]:
        """Answer for this edge alone, in steps.

        Work is in steps, so that 100,000 DIDs do not hold the event loop.
        """
        if message.kind == LIST:
            return served.subscribers.page(message.fields["after"], message.fields["limit"])
        if message.kind == KICK:
            request = Request("POST", "/subscribers/kick", "", 1, {}, body=message.body)
            return served.subscribers.kick(request, None)
        return served.did_lists.answer(message.body)

    async def _run(self, steps: Steps[Response]) -> Response:
        """Do work in steps, and return its result.

        Raises what the work raises. It is done to its end even if the caller is cancelled: the worker
        has it in its queue.
        """
        done: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

        def job() -> Steps[None]:
            """Do the work as a job of the worker, which has no use for a result or an error."""
            try:
                result = yield from steps
            except Exception as error:  # noqa: BLE001 - raised where the result is awaited
                done.set_exception(error)
            else:
                done.set_result(result)

        self._worker.put(job())
        return await asyncio.shield(done)  # which stays, though nobody may wait any more

    # --- what `Service` and `Endpoints` call ---

    def take(self, endpoints: Endpoints) -> None:
        """Get connections for what is served here, and share what is limited. The ingest has none.

        Called by `Endpoints`, whose servers have no listeners here. From now on, each change of
        connections, subscribers and addresses is told, at most every `share_every_s` seconds.
        """
        subscribe, subscribers, servers = endpoints.subscribe, endpoints.subscribers, endpoints.servers
        if subscribe is None or subscribers is None:
            return
        self._served = _Served(servers, subscribe, subscribers, endpoints.did_lists, endpoints.addresses)
        hand_overs, connections = [each.hand_over for each in servers], servers[0].connections
        self._taking = Taking(self._sock, hand_overs, connections.make_room, connections.limits)
        for server in servers:
            server.connections.changed = self._tell_soon
        subscribe.changed = self._tell_soon
        if endpoints.addresses is not None:
            self._changes = endpoints.addresses.changes = Changes(self._tell_soon)

    def stop_taking(self) -> None:
        """Get no more connections.

        Those that were taken stay. What is on the way to this process is passed to another edge.
        """
        if self._taking is not None:
            self._taking.close()

    def with_upstreams(self, status: Callable[[], Status]) -> Callable[[], Status]:
        """Return a status with the upstreams of the ingest, as it said last.

        For the page at `/` of an edge, which knows no upstream itself.
        """
        return self._covering.with_upstreams(status)

    def cover(self, routes: Routes) -> Routes:
        """Return routes that answer for all processes."""
        return self._covering.routes(routes)

    async def _ask(
        self, kind: str, fields: Mapping[str, Any], body: bytes = b"", *, within_s: float | None = None
    ) -> Response:
        """Ask the supervisor, and return the response that its answer is. Status 503: there is none.

        `within_s` seconds are what the supervisor has to ask all edges, by default `answer_s`. Its own answer
        may come a little later: it says more than an error here would.
        """
        within_s = (within_s or self.limits.answer_s) + self.limits.snapshot_s
        try:
            return _response(await self.channel.ask(kind, fields, body, within_s=within_s))
        except ChannelError as error:
            text = f"the other processes of the server do not answer ({error}): try again later"
            return Response.sentence(503, text, _RETRY)

    def allowance(self, rate: str) -> Allowance:
        """Return what tells whether all processes may do something once more, by a rate of `WebLimits`.

        What it returns is awaited for each use. `rate` is the name of a field, of those in
        `view._SHARED_RATES`.
        """
        return partial(self._spend, rate)

    async def _spend(self, rate: str) -> bool:
        """Take a token of a rate of all processes; return whether there was one, and an answer at all.

        Without an answer there is no token: a limit holds while the supervisor does not answer.
        """
        try:
            answer = await self.channel.ask(SPEND, {"rate": rate}, within_s=self.limits.answer_s)
        except ChannelError:
            return False
        return bool(answer.fields["spent"])

    async def _upload(self, body: bytes) -> Response:
        """Have every edge read a list of DIDs. It is not sent to them without a token.

        Returns what the client gets: 200 with the ID of the list, or why it is not kept.
        """
        assert self._served is not None
        if not await self._spend("did_lists_read"):
            return self._served.did_lists.too_many()
        return await self._ask(UPLOAD, {}, body, within_s=self.limits.upload_s)

    # --- what is told ---

    def _tell_soon(self) -> None:
        """Tell the supervisor what has changed, after a moment in which more may.

        Called at each change of connections, subscribers or addresses, which may be thousands a second.
        """
        if self._telling is None:
            pause_s = self.limits.share_every_s / 2
            self._telling = asyncio.get_running_loop().call_later(pause_s, self._tell)

    def _tell(self) -> None:
        """Tell the supervisor what has changed of addresses, and what there is now.

        A connection is counted from the moment at which it was taken: while it begins, while it speaks
        HTTP, and while it is a subscriber. It may be counted twice when it goes from one to the next,
        so another message follows later.
        """
        self._telling = None
        if self._again is not None:
            self._again.cancel()
            self._again = None
        served, taking = self._served, self._taking
        if served is None or taking is None:
            return
        subscribers = len(served.subscribe)
        opened = taking.beginning + subscribers + sum(len(each.connections) for each in served.servers)
        if self._changes is not None and (changes := self._changes.take()):
            self.channel.tell("usage", {"changes": packed(changes)})
        self.channel.tell("load", {"open": opened, "taken": taking.taken, "subscribers": subscribers})
        if taking.beginning:  # which may be counted twice, and end without another change
            pause_s = 10 * self.limits.share_every_s
            self._again = asyncio.get_running_loop().call_later(pause_s, self._tell_soon)


def _ignoring_result(steps: Steps[Any]) -> Steps[None]:
    """Return steps that do the same work, for a worker, which has no use for a result."""
    yield from steps


def _message(response: Response) -> ChannelMessage:
    """Return a response as the answer to a question; `_response` makes it one again."""
    fields = {"status": response.status, "type": response.content_type, "headers": response.headers}
    return ChannelMessage("", fields, response.body)


def _response(message: ChannelMessage) -> Response:
    """Return the response that an answer is. Raises KeyError for an answer without a status."""
    fields = message.fields
    return Response(fields["status"], message.body, fields.get("type", ""), fields.get("headers"))
