"""`jetstream log`: look into a log, check it, mend it, and write it out as text."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from jetstream.clock import unix_us
from jetstream.delivery.renderers.v1 import V1
from jetstream.errors import SettingError
from jetstream.eventlog.sqlite import rebase as rebasing
from jetstream.eventlog.sqlite import repair as repairing
from jetstream.eventlog.sqlite.export import Contents, contents, selected
from jetstream.model.batch import Batch
from jetstream.model.event import KIND_NAMES, Event
from jetstream.model.filter import Filter

EXIT_DAMAGED: Final = 1
COLLECTIONS_SHOWN: Final = 20

DataDir = Annotated[Path, Parameter(env_var="JETSTREAM_DATA_DIR", help="Directory of the event log.")]
DEFAULT_DATA_DIR: Final = Path("./data")


def stats(*, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Say how large the log is, from when to when it reaches, and what is in it. A server may be running."""
    held = contents(data_dir)
    events = sum(held.kinds.values())
    _say(f"events       {events:,}")
    _say(f"blocks       {held.blocks:,}")
    _say(f"on disk      {held.bytes_on_disk:,} bytes")
    if events:
        _say(f"per event    {held.bytes_on_disk / events:.1f} bytes, {_ratio(held):.3f} of the same as JSON")
    _say(f"floor        {_moment(held.floor)}")
    _say(f"oldest       {_moment(held.oldest_us)}")
    _say(f"newest       {_moment(held.newest_us)}")
    cursors = [f"{source}, seq {cursor.seq}" for source, cursor in held.cursors.items()]
    _say(f"upstream     {'; '.join(cursors) or 'none'}")
    for kind, count in sorted(held.kinds.items()):
        _say(f"{KIND_NAMES[kind]:12} {count:,}")
    for collection, count in held.collections.most_common(COLLECTIONS_SHOWN):
        _say(f"{count:12,} {collection.decode()}")
    if len(held.collections) > COLLECTIONS_SHOWN:
        _say(f"{'':12} and {len(held.collections) - COLLECTIONS_SHOWN} more collections")


def check(*, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Read all of the log and verify its checksums; exit 1 if it is damaged. A server may be running."""
    found = repairing.check(data_dir)
    for problem in found.problems:
        _say(f"damaged: {problem}")
    _say(f"{found.events:,} events in {found.blocks:,} blocks and the tail are whole")
    if found.problems:
        _say("stop the server and run `jetstream log repair` to keep them")
        sys.exit(EXIT_DAMAGED)


def repair(*, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Keep every whole block of a damaged log, and put the damaged file aside. No server may be running."""
    found, aside = repairing.repair(data_dir)
    for problem in found.problems:
        _say(f"damaged: {problem}")
    _say(f"kept {found.events:,} events in {found.blocks:,} blocks and the tail")
    if aside is not None:
        _say(f"the damaged file is now {aside}")
    elif found.problems:
        _say("mended in place: what is damaged is deleted")
    else:
        _say("nothing is damaged: nothing was changed")


def rebase_time(*, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Move positions that are ahead of the clock back to the present. No server may be running.

    Cursors that clients have kept from that range mean other events afterwards.
    """
    now_us = unix_us()
    done = rebasing.rebase(data_dir, now_us)
    if done.tip_before_us == done.tip_us:
        _say(f"the newest position, {_moment(done.tip_us)}, is not ahead of the clock: nothing was changed")
        return
    _say(f"the newest position was {_moment(done.tip_before_us)}, and is {_moment(done.tip_us)} now")
    _say(f"{done.events:,} events have new positions, in the same order")
    _say("cursors that clients have kept from before mean other events now: begin again from a time, or live")


def cat(
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    since: Annotated[str | None, Parameter(help="First moment: ISO 8601, or unix microseconds.")] = None,
    until: Annotated[str | None, Parameter(help="First moment that is left out.")] = None,
    collection: Annotated[
        list[str] | None, Parameter(help="Only commits to it; may end in .*; repeatable.")
    ] = None,
    did: Annotated[list[str] | None, Parameter(help="Only events of this repo; repeatable.")] = None,
) -> None:
    """Write events as JSON, one a line, spelled as on /v1/subscribe. A server may be running."""
    wanted = Filter.parse(collection or [], did or [])
    start = 0 if since is None else parse_moment("--since", since)
    stop = None if until is None else parse_moment("--until", until)
    out = sys.stdout.buffer
    try:
        for batch, indices in selected(data_dir, start, stop, wanted):
            out.writelines(message + b"\n" for message in V1.render(batch, indices) if message)
        out.flush()
    except BrokenPipeError:
        # Whoever read has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse_moment(flag: str, text: str) -> int:
    """Read a moment as unix microseconds; a time without a zone is UTC. Raises SettingError."""
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingError(
            flag, text, "is neither unix microseconds nor a time such as 2026-07-04T14:30:00Z"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)


def _ratio(held: Contents) -> float:
    """Return the bytes on disk over those of the same events as v1 JSON."""
    around = sum(count * _around(kind) for kind, count in held.kinds.items())
    return held.bytes_on_disk / (held.text_bytes + around)


def _around(kind: bytes) -> int:
    """Return how many bytes v1 JSON puts around an event's values."""
    return len(V1.render(Batch.of([Event(kind, *[b""] * 6)], [10**15]), [0])[0])


def _moment(time_us: int | None) -> str:
    if not time_us:
        return "none"
    return f"{time_us} ({datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec='milliseconds')})"


def _say(text: str) -> None:
    print(text)  # noqa: T201 - what a command says
