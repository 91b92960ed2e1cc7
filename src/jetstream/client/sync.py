"""`subscribe_sync`: the same subscription for scripts and notebooks, without asyncio.

A thread with an event loop of its own reads the subscription into a queue of limited size:

     thread of the loop                            thread of the caller
     Stream.items ──▶ Channel.put ──▶ queue ──▶ Channel.get ──▶ for event in …
                          ▲                         │
                          └── waits for room ◀──────┘

Positions and the store belong to the caller's thread.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from functools import update_wrapper
from types import TracebackType
from typing import Any, Final, NamedTuple, ParamSpec, Self, cast

from jetstream.client.limits import ClientLimits
from jetstream.client.message import Mark, Message
from jetstream.client.progress import Progress
from jetstream.client.subscription import subscribe

_MARK_BYTES: Final = 100  # as which a mark counts
_CLOSE_S: Final = 2.0  # for the thread to close the connection; then it is left behind

P = ParamSpec("P")
Item = Message | Mark


class _End(NamedTuple):
    """The subscription has ended."""

    error: BaseException | None  # why; None at `until` and `limit`


class Channel:
    """A queue from the thread of an event loop to one other thread, bounded in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._queue: queue.SimpleQueue[Item | _End] = queue.SimpleQueue()
        # Bytes that have been put, ever; by the loop's thread only.
        self._put = 0
        # Bytes that have been taken, ever; by the other thread only.
        self._taken = 0
        # Wakes `put` when there is room.
        self._room = asyncio.Event()
        # The loop of `put`, while `put` waits.
        self._waiting: asyncio.AbstractEventLoop | None = None

    @property
    def _full(self) -> bool:
        return self._put - self._taken >= self._bytes_max

    async def put(self, item: Item) -> None:
        """Add an item; wait until there is room for another one."""
        self._queue.put(item)
        self._put += _size(item)
        while self._full:
            self._room.clear()
            self._waiting = asyncio.get_running_loop()
            if self._full:  # still, now that the other thread can see who waits
                await self._room.wait()
            self._waiting = None

    def end(self, error: BaseException | None) -> None:
        """Add the end."""
        self._queue.put(_End(error))

    def get(self, timeout_s: float | None) -> Item | _End:
        """Return the next item, or the end. Raises queue.Empty after a time."""
        item = self._queue.get(timeout=timeout_s)
        if not isinstance(item, _End):
            self._taken += _size(item)
            waiting = self._waiting
            if waiting is not None and not self._full:
                with suppress(RuntimeError):  # the loop has ended
                    waiting.call_soon_threadsafe(self._room.set)
        return item


def _size(item: Item) -> int:
    return len(item.raw) if isinstance(item, Message) else _MARK_BYTES


class _Reader:
    """The thread that reads. It knows nothing of the subscription, so that this can be collected."""

    def __init__(self, items: AsyncGenerator[Item, None], channel: Channel) -> None:
        self._items = items
        self._channel = channel
        # A daemon, so that nothing can keep a script from ending.
        self._thread = threading.Thread(target=self._run, name="jetstream.client", daemon=True)
        # Set by the thread, before `_started`.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        # Set once, when there is a loop and a task.
        self._started = threading.Event()

    def start(self) -> None:
        """Start to read, if that has not been done."""
        if self._thread.ident is None:
            self._thread.start()
            self._started.wait()

    def close(self) -> None:
        """Stop reading, and close the connection. Does nothing if reading has never started."""
        if self._thread.ident is None:
            return
        self._started.wait()  # Ctrl-C may have ended the wait in `start`
        assert self._loop is not None
        assert self._task is not None
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._task = self._loop.create_task(self._read())
            self._started.set()
            with suppress(asyncio.CancelledError):  # before its first step
                self._loop.run_until_complete(self._task)

    async def _read(self) -> None:
        error: BaseException | None = None
        try:
            async with aclosing(self._items) as items:
                async for item in items:
                    await self._channel.put(item)
        except asyncio.CancelledError:
            pass  # closed: nobody waits for the end
        except BaseException as raised:  # noqa: BLE001 - it is raised in the other thread
            error = raised
        self._channel.end(error)


class SyncSubscription(Iterator[Message]):
    """The events of a subscription, in order. `subscribe_sync` makes it; one thread reads it.

    It is closed at the end of `with`, by `close`, by an error or Ctrl-C while the loop waits, and when it is
    no longer used, as after `break`. The end of `with` counts the last event as done, unless an error has
    ended the block.
    """

    def __init__(
        self,
        items: AsyncGenerator[Item, None],
        progress: Progress,
        limits: ClientLimits = ClientLimits(),
    ) -> None:
        self._progress = progress
        self._channel = Channel(limits.queue_bytes_max)
        # Reads, once its thread has been started by the first event that is asked for.
        self._reader = _Reader(items, self._channel)
        # Closes it all, once. Also when this object is deleted, and when Python ends.
        self._close = weakref.finalize(self, _close, self._reader, progress)

    @property
    def position(self) -> int | None:
        """Where to resume, in unix microseconds: everything below it is done. None before it is known."""
        return self._progress.position

    @property
    def live(self) -> bool:
        """Whether playback had caught up with the stream at the last heartbeat of this connection."""
        return self._progress.live

    def __next__(self) -> Message:
        if not self._close.alive:
            raise StopIteration
        try:
            self._progress.done()
            self._reader.start()
            return self._next_event()
        except BaseException:
            self.close()
            raise

    def _next_event(self) -> Message:
        while True:
            try:
                item = self._channel.get(self._progress.unsaved_s)
            except queue.Empty:
                self._progress.save()
                continue
            if isinstance(item, _End):
                raise item.error or StopIteration
            event = self._progress.take(item)
            if event is not None:
                return event

    def close(self) -> None:
        """Close the connection, and save the position. The last event is not counted as done."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._close.alive:
                self._progress.done()
        finally:
            self.close()


def _close(reader: _Reader, progress: Progress) -> None:
    try:
        reader.close()
    finally:
        progress.save()


def _parameters_of(
    function: Callable[P, object],
) -> Callable[[Callable[..., SyncSubscription]], Callable[P, SyncSubscription]]:
    """Give a function the parameters of another one, for type checkers and for `help`."""

    def decorated(other: Callable[..., SyncSubscription]) -> Callable[P, SyncSubscription]:
        return update_wrapper(cast("Callable[P, SyncSubscription]", other), function, assigned=())

    return decorated


@_parameters_of(subscribe)
def subscribe_sync(*args: Any, **options: Any) -> SyncSubscription:
    """Return the events of a Jetstream, in order, as an iterator. Its arguments are those of `subscribe`.

    Events are read by a thread, at most `limits.queue_bytes_max` bytes ahead of the loop. A slow loop applies
    backpressure beyond that. The functions that are for tests are called in that thread, and the `store` in
    the thread of the loop. It works in notebooks too, where an event loop runs already.
    """
    subscription = subscribe(*args, **options)
    limits = options.get("limits", ClientLimits())
    return SyncSubscription(subscription.items, subscription.progress, limits)
