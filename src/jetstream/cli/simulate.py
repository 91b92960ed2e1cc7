"""`jetstream simulate` and `jetstream record`."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import structlog
from cyclopts import Parameter
from cyclopts.validators import Number

from jetstream import logging_setup as logs
from jetstream.clock import unix_us
from jetstream.errors import JetstreamError, SettingError
from jetstream.runtime import run, tune_gc
from jetstream.settings import parse_upstream
from jetstream.simulator.errors import MissingExtra
from jetstream.urls import shown

try:
    from jetstream.simulator import recording, server
    from jetstream.simulator.faults import Faults
    from jetstream.simulator.network import Network, replay_app
    from jetstream.simulator.record import DIRECTORY, record_firehose
    from jetstream.simulator.stream import Sink
    from jetstream.simulator.world import Population, SteadyClock
except ModuleNotFoundError as error:
    raise MissingExtra("the simulator", "simulator", error.name) from error

STEP_US: Final = 2500  # a repeatable world lives at 400 happenings a second, whatever --rate is
_START: Final = "2026-01-01T00:00:00Z"
_log = structlog.get_logger(__name__)

Flag = Parameter(negative=())


def simulate(  # noqa: PLR0913 - one argument a flag
    *,
    repos: Annotated[int, Parameter(validator=Number(gte=1))] = 200,
    records: Annotated[int, Parameter(validator=Number(gte=1))] = 50,
    rate: Annotated[float, Parameter(validator=Number(gte=0))] = 100.0,
    events: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    seed: int | None = None,
    start: str = _START,
    host: str = server.HOST,
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = server.PORT,
    serve: bool = True,
    record: Path | None = None,
    truth: Path | None = None,
    ledger: Path | None = None,
    replay: Path | None = None,
    in_memory: Annotated[bool, Flag] = False,
    fault: Annotated[Faults | None, Parameter(name="--fault")] = None,
) -> None:
    """Be a whole network: a firehose, its repositories and its directory, on one port and offline.

    Parameters
    ----------
    repos
        Accounts, each with a signed repository.
    records
        Records that each repository begins with.
    rate
        Events a second; 0: as fast as the slowest reader takes them.
    events
        Stop after so many events and stay there, silent. Default: go on for ever.
    seed
        The same seed gives the same bytes. Default: a new world on the clock on the wall.
    start
        When the clock of a world with a seed begins.
    host
        Address to listen at.
    port
        Port to listen at; 0 takes a free one.
    serve
        With --no-serve: only write the files, --events long, and end.
    record
        Write the frames to this file, and the DID documents beside it.
    truth
        Write the events that a correct Jetstream must emit to this file: v1 wire, without time_us.
    ledger
        Write what was injected to this file, one JSON object a line.
    replay
        Serve this recording and make no world.
    in_memory
        Read the recording into memory first: faster, for benchmarks.
    fault
        How often things go wrong, from 0 to 1.
    """
    logs.configure("info", "auto")
    if replay is not None:
        with _said_plainly():
            run(_replay(replay, host, port, rate, in_memory=in_memory))
        return
    if not serve and events is None:
        raise SettingError("--no-serve", "", "needs --events: without readers there must be an end")
    with _said_plainly(), ExitStack() as files:
        frames = None if record is None else files.enter_context(recording.writing(record))
        network = Network(
            Population(repos=repos, records=records),
            secrets.randbits(63) if seed is None else seed,
            unix_us if seed is None else SteadyClock(_microseconds(start), STEP_US),
            fault,
            truth=_lines(files, truth),
            ledger=_lines(files, ledger),
            record=frames,
        )
        tune_gc()  # a world is large and stays
        if serve:
            run(_live(network, host, port, rate, events))
        else:
            for _ in range(events or 0):
                network.stream.advance()
        if record is not None:
            recording.write_documents(record, network.documents())


def record(
    file: Path,
    /,
    *,
    upstream: str,
    frames: Annotated[int, Parameter(validator=Number(gte=1))] = 10_000,
    cursor: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
    directory: str = DIRECTORY,
    documents: bool = True,
) -> None:
    """Record the frames of a relay or PDS as they are, to be served again by `simulate --replay`.

    Parameters
    ----------
    file
        The recording: frames with their lengths, under zstd. DID documents are written beside it.
    upstream
        A relay or PDS: a host, a base URL, or the whole URL.
    frames
        End after so many frames.
    cursor
        Begin after this sequence number. Default: now.
    directory
        Where did:plc documents are asked for.
    documents
        With --no-documents: ask for none.
    """
    logs.configure("info", "auto")
    try:
        url = parse_upstream(upstream)
    except ValueError as error:
        raise SettingError("--upstream", shown(upstream), str(error)) from error
    with _said_plainly():
        run(record_firehose(url, file, frames, cursor, directory if documents else None))
    _log.info("recorded", file=str(file), frames=frames)


async def _live(network: Network, host: str, port: int, rate: float, events: int | None) -> None:
    async with server.serving(network.app(), host, port) as bound:
        network.url = f"http://{host}:{bound}"
        _announce(host, bound, repos=len(network.world.present), rate=rate or "as fast as it is read")
        stopped = _stopped()
        living = asyncio.create_task(network.firehose.run(rate, events))
        living.add_done_callback(lambda task: None if task.cancelled() else _log.info("all is said; idle"))
        await asyncio.wait((stopped, living), return_when=asyncio.FIRST_COMPLETED)
        if living.done():
            await living
        await stopped
        living.cancel()
    _log.info("stopped", events=network.stream.seq)


async def _replay(path: Path, host: str, port: int, rate: float, *, in_memory: bool) -> None:
    async with server.serving(replay_app(path, rate, in_memory=in_memory), host, port) as bound:
        _announce(host, bound, replay=str(path), rate=rate or "as fast as it is read")
        await _stopped()


def _announce(host: str, port: int, **what: object) -> None:
    url = f"ws://{host}:{port}"
    _log.info("a network is up", **what, read_it_with=f"jetstream serve --upstream {url}")


def _stopped() -> asyncio.Future[None]:
    """Give what is done once somebody asks this process to stop."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if not stopped.done():
            stopped.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return stopped


def _microseconds(start: str) -> int:
    try:
        moment = datetime.fromisoformat(start)
    except ValueError as error:
        raise SettingError("--start", start, f"is not a date and time such as {_START}") from error
    return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1_000_000)


def _lines(files: ExitStack, path: Path | None) -> Sink | None:
    """Open a file for lines that others may read as they come."""
    if path is None:
        return None
    file = files.enter_context(path.open("wb", buffering=0))

    def add(line: bytes) -> None:
        file.write(line + b"\n")

    return add


@contextmanager
def _said_plainly() -> Iterator[None]:
    """Turn what the system refuses into one line for a person."""
    try:
        yield
    except OSError as error:
        raise JetstreamError(str(error)) from error
