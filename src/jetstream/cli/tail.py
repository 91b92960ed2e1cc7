"""`jetstream tail`: events on standard output, messages on standard error.

    subscribe of the client library ─▶ an event ─▶ one line, flushed at once

Reconnecting and resuming is the library's work. What is here is the end: standard output may be a pipe
whose reader goes away, or does not read for a while.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, BinaryIO, Final

from cyclopts import Parameter
from cyclopts.validators import Number

from jetstream.cli.times import parse_moment
from jetstream.client.request import DEFAULT_URL, HEARTBEAT_MAX_S, Kind, Operation
from jetstream.client.store import FileCursor
from jetstream.client.subscription import Subscription, subscribe
from jetstream.clock import unix_us
from jetstream.errors import InvalidParameter, JetstreamError, SettingError

# As a shell has it for a command that a signal has ended.
EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
# Flags of parameters of the library that are called otherwise, for messages.
_FLAGS: Final = {"url": "URL", "collections": "--collection", "dids": "--did"}


def tail(  # noqa: PLR0913 - each is a flag
    *url: str,
    collection: Annotated[list[str] | None, Parameter(negative=(), metavar="NSID")] = None,
    did: Annotated[list[str] | None, Parameter(negative=(), metavar="DID")] = None,
    since: Annotated[str | None, Parameter(allow_leading_hyphen=True, metavar="TIME")] = None,
    cursor: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
    limit: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    until: Annotated[str | None, Parameter(allow_leading_hyphen=True, metavar="TIME")] = None,
    kind: Annotated[list[Kind] | None, Parameter(negative=())] = None,
    operation: Annotated[list[Operation] | None, Parameter(negative=())] = None,
    compress: Annotated[bool, Parameter(negative=())] = False,
    heartbeat: Annotated[int | None, Parameter(validator=Number(gte=1, lte=HEARTBEAT_MAX_S))] = None,
    store: Path | None = None,
    pretty: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Print the events of a Jetstream as they are received, one JSON object a line.

    After a lost connection it reconnects and resumes: no event is lost or printed twice. It exits with 130 on
    Ctrl-C, and with 0 when the pipe that it writes to is closed, for example by `head`.

    Parameters
    ----------
    url
        A host, a base URL, or a full URL; by default ws://localhost:6008/subscribe. Of several servers, one
        is read, and the next one when it fails.
    collection
        Only commits to this collection, or to a prefix: app.bsky.graph.*. May be repeated.
    did
        Only events of this account. May be repeated.
    since
        Start at this time: unix microseconds, 2026-07-04T14:30:00Z, or an age: -10m, 24h.
    cursor
        Start at this time, in unix microseconds.
    limit
        Exit after this many events.
    until
        Exit before the first event at this time, or when the stream has reached it. Like --since.
    kind
        Only events of this kind. May be repeated.
    operation
        Only commits with this operation. May be repeated.
    compress
        Receive compressed messages, if the server has a dictionary of its own. They are printed as JSON.
    heartbeat
        Have the server say after this many seconds without an event that it is there, and reconnect when it
        does not: 1 to 300.
    store
        Keep the position in this file, and begin there the next time.
    pretty
        Print each event on several lines, with indentation.
    """
    try:
        events = subscribe(
            url or DEFAULT_URL,
            collections=collection or [],
            dids=did or [],
            kinds=kind or [],
            operations=operation or [],
            cursor=_start(since, cursor),
            until=None if until is None else parse_moment("--until", until, unix_us()),
            limit=limit,
            compress=compress,
            heartbeat=heartbeat,
            store=None if store is None else FileCursor(store),
        )
    except InvalidParameter as error:
        raise SettingError(_FLAGS.get(error.name, f"--{error.name}"), error.value, error.problem) from error
    # The client library logs lost connections with the standard module.
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="jetstream tail: %(message)s")
    # Python's own handler would wait for a blocked write; `less` reads no more than one screen.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(EXIT_INTERRUPTED))
    try:
        asyncio.run(_print(events, sys.stdout.buffer, _indented if pretty else bytes))
    except (BrokenPipeError, asyncio.CancelledError):
        _discard_output()
    except SystemExit:  # interrupted, perhaps in a write that a reader holds up
        _discard_output()
        raise
    except OSError as error:
        _discard_output()
        raise JetstreamError(f"cannot write to standard output: {error.strerror}") from error


def _start(since: str | None, cursor: int | None, clock: Callable[[], int] = unix_us) -> int | None:
    """Return where to start, in unix microseconds; None: live. Raises SettingError for two answers."""
    if since is None:
        return cursor
    if cursor is not None:
        raise SettingError("--since", since, f"cannot be given together with --cursor {cursor}")
    return parse_moment("--since", since, clock())


def _indented(raw: bytes) -> bytes:
    """Return JSON with indentation; integers keep all their digits, and lone surrogates are escaped."""
    text = json.dumps(json.loads(raw), indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")


async def _print(events: Subscription, out: BinaryIO, shown: Callable[[bytes], bytes]) -> None:
    """Write events, as `shown` returns them, until their end.

    Raises OSError. Is cancelled when the other end of a pipe is closed.
    """
    _cancel_when_closed(out)
    async with events:
        async for event in events:
            out.write(shown(event.raw) + b"\n")
            out.flush()


def _cancel_when_closed(out: BinaryIO) -> None:
    """Cancel this task as soon as the other end of the pipe `out` is closed, without waiting for an event."""
    fd = out.fileno()
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def cancel() -> None:
        """Cancel once: the pipe stays closed, and would be reported again and again."""
        loop.remove_reader(fd)
        task.cancel()

    # The write end of a pipe is never readable, but its watchers are notified when the read end is closed.
    loop.add_reader(fd, cancel)


def _discard_output() -> None:
    """Discard buffered output. Python would write it at exit: wait for a reader, or fail with a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
