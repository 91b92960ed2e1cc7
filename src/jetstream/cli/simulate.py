"""`jetstream simulate` and `jetstream record`: a network to try a server with, and recordings of a real one.

    simulate            a world ─▶ Network: relays, PDSes, directory ─▶ frames, and what must come of them
    simulate --replay   a recording ─▶ one relay
    record              a relay ─▶ a recording, and the DID documents of its accounts

The simulator needs an extra of the package. Without it, importing this module raises MissingExtra, whose
text says what to install. docs/simulator.md has examples.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from inspect import signature
from pathlib import Path
from typing import Annotated, Final, Literal

import structlog
from cyclopts import Parameter
from cyclopts.validators import Number

from jetstream import logging_setup
from jetstream.clock import unix_us
from jetstream.errors import JetstreamError, SettingError
from jetstream.runtime import run, tune_gc
from jetstream.simulator.errors import MissingExtra
from jetstream.upstreams import parse_url
from jetstream.urls import shown

try:
    from jetstream.simulator import recording, server
    from jetstream.simulator.faults import Faults
    from jetstream.simulator.ledger import Sink
    from jetstream.simulator.network import Network, Sinks, replay_app
    from jetstream.simulator.recorder import DIRECTORY, record_firehose
    from jetstream.simulator.relays import Relay, parse_relay
    from jetstream.simulator.world import Population, SteadyClock
except ModuleNotFoundError as error:
    raise MissingExtra("the simulator", "simulator", error.name) from error

# PDSes at most: each listens on a port of its own.
PDS_MAX: Final = 1000
# Addresses of PDSes in the log line, at most; with more of them it has their number.
PDS_SHOWN: Final = 10
# Microseconds by which the clock of a repeatable world moves with each message: 400 messages a second of
# its time, whatever --rate is. So the same seed makes the same bytes.
STEP_US: Final = 2500
# The default of --start; it is named in its help as well.
_START: Final = "2026-01-01T00:00:00Z"
# Arguments that have a meaning with --replay.
_OF_A_REPLAY: Final = {"replay", "rate", "in_memory", "host", "port"}
# Flags that are not called as their arguments, for messages.
_FLAGS: Final = {"serve": "--no-serve", "fault": "--fault.…"}
logger = structlog.get_logger(__name__)

Flag = Parameter(negative=())
# `--fault.bit-flipped` for a field `bit_flipped`, and no `--fault` that would be taken for the first of them.
Rates = Parameter(name="*", name_transform=lambda field: "fault." + field.replace("_", "-"))
Share = Annotated[float, Parameter(validator=Number(gte=0, lte=1))]


def simulate(  # noqa: PLR0913 - one argument a flag
    *,
    repos: Annotated[int, Parameter(validator=Number(gte=1))] = 200,
    records: Annotated[int, Parameter(validator=Number(gte=1))] = 50,
    rate: Annotated[float, Parameter(validator=Number(gte=0))] = 100.0,
    events: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    seed: int | None = None,
    start: Annotated[str | None, Parameter(metavar="TIME")] = None,
    host: Annotated[str, Parameter(metavar="ADDRESS")] = server.HOST,
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = server.PORT,
    serve: bool = True,
    record: Path | None = None,
    truth: Path | None = None,
    ledger: Path | None = None,
    verdicts: Path | None = None,
    relay: Annotated[list[str] | None, Parameter(negative=(), metavar="RELAY")] = None,
    losses: Literal["independent", "disjoint"] = "independent",
    pds: Annotated[int, Parameter(validator=Number(gte=0, lte=PDS_MAX))] = 0,
    pds_share: Share = 0.5,
    rotations: Share = 0,
    did_web: Share = 0,
    replay: Path | None = None,
    in_memory: Annotated[bool, Flag] = False,
    fault: Annotated[Faults | None, Rates] = None,
) -> None:
    """Simulate an AT Protocol network, offline: relays and PDSes with their repositories, and a directory.

    Parameters
    ----------
    repos
        Accounts, each with a signed repository.
    records
        Records of each repository at the beginning.
    rate
        Messages a second; 0: as fast as the slowest subscriber reads.
    events
        Stop after this many messages, and stay connected. Default: no limit.
    seed
        The same seed makes the same bytes. Default: a random world that uses the wall clock.
    start
        Start time of the clock of a world with a seed. Default: 2026-01-01T00:00:00Z.
    host
        Address to listen on.
    port
        Port of the first relay; 0 takes a free one. Other relays, and then the PDSes, take the next ports.
    serve
        With --no-serve: only write the files, of --events messages, and exit.
    record
        Write the frames to this file, and beside it the DID document of each account, or its audit log if its
        key was rotated.
    truth
        Write the events that a correct Jetstream must emit to this file: v1 wire, without time_us.
    ledger
        Write the injected faults and losses to this file, one JSON object a line.
    verdicts
        Write what a full verifier must say of each commit and sync to this file, one JSON object a line.
    relay
        A relay, such as name=b,lag=200ms,loss=0.05,outage=1500ms. Repeat it for several. Other keys: port,
        seq, every, takedowns, and each fault of the firehose by its name. Default: one that loses nothing.
    losses
        Whether several relays may lose the same message (independent) or not (disjoint).
    pds
        PDSes with a firehose of their own accounts.
    pds_share
        Share of the accounts that live on these PDSes. The others live on the first relay.
    rotations
        Share of messages that replace the key of an account, beside the few that replace one by chance.
    did_web
        Share of accounts with a did:web, which only the simulator's directory can resolve.
    replay
        Serve this recording instead of a world: with --rate, --in-memory, --host and --port only.
    in_memory
        Read the recording into memory first: faster, for benchmarks.
    fault
        Rate of each fault, from 0 to 1.
    """
    # Taken first, while the arguments are the only local names. `_check_replay` compares it with the
    # defaults.
    given = locals()
    logging_setup.configure("info", "auto")
    if replay is not None:
        _check_replay(given)
        with _os_errors():
            run(_replay(replay, host, port, rate, in_memory=in_memory))
        return
    if start is not None and seed is None:
        raise SettingError("--start", start, "needs --seed: a world without a seed uses the wall clock")
    if not serve and events is None:
        raise SettingError("--no-serve", "", "needs --events: without a server there must be an end")
    with _os_errors(), ExitStack() as files:
        frames = None if record is None else files.enter_context(recording.writing(record))
        network = Network(
            Population(
                repos=repos,
                records=records,
                rotations=rotations,
                did_web=did_web,
                pds=pds,
                pds_share=pds_share,
            ),
            secrets.randbits(63) if seed is None else seed,
            unix_us if seed is None else SteadyClock(_microseconds(start or _START), STEP_US),
            fault,
            sinks=Sinks(
                truth=_lines(files, truth),
                ledger=_lines(files, ledger),
                verdicts=_lines(files, verdicts),
                record=frames,
            ),
            relays=_relays(relay, fault or Faults()),
            disjoint=losses == "disjoint",
        )
        # DID documents name the URLs of the hosts, so ports are chosen before the world makes a
        # document.
        network.set_urls([f"http://{host}:{bound}" for bound in network.ports(port)])
        tune_gc()  # a world is large and permanent
        if serve:
            run(_live(network, host, port, rate, events))
        else:
            # Without a server nobody waits for a message: each is made at once.
            for _ in range(events or 0):
                network.advance()
        if record is not None:
            recording.write_documents(record, network.documents())


def record(
    file: Path,
    /,
    *,
    upstream: Annotated[str, Parameter(metavar="URL")],
    frames: Annotated[int, Parameter(validator=Number(gte=1))] = 10_000,
    cursor: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
    directory: Annotated[str, Parameter(metavar="URL")] = DIRECTORY,
    documents: bool = True,
) -> None:
    """Record the frames of a relay or PDS, unchanged, for `simulate --replay`.

    Parameters
    ----------
    file
        The recording: frames with their lengths, compressed with zstd. DID documents are written beside it.
    upstream
        A relay or PDS: a host, a base URL, or a full URL.
    frames
        Frames to record.
    cursor
        Start after this sequence number. Default: live.
    directory
        Where to request the documents of did:plc accounts.
    documents
        With --no-documents: request no DID documents.
    """
    logging_setup.configure("info", "auto")
    try:
        url = parse_url(upstream)
    except ValueError as error:
        raise SettingError("--upstream", shown(upstream), str(error)) from error
    with _os_errors():
        run(record_firehose(url, file, frames, cursor, directory if documents else None))
    logger.info("recorded", file=str(file), frames=frames)


async def _live(network: Network, host: str, port: int, rate: float, events: int | None) -> None:
    """Serve a world until SIGINT or SIGTERM. Raises OSError for an address that cannot be listened on.

    After `events` messages it is idle, and subscribers stay connected. An error in the world ends the
    command.
    """
    async with network.serving(host, port):
        _announce(
            {relay.name: relay.url for relay in network.relays},
            repos=len(network.world.accounts),
            rate=rate or "as fast as it is read",
            pds={pds.name: pds.url for pds in network.pdses},
        )
        stopped = _stop_signal()
        running = asyncio.create_task(network.run(rate, events))
        running.add_done_callback(
            lambda task: None if task.cancelled() else logger.info("all messages are sent; idle")
        )
        await asyncio.wait((stopped, running), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running
        await stopped
        running.cancel()
    logger.info("stopped", events=network.stream.seq)


async def _replay(path: Path, host: str, port: int, rate: float, *, in_memory: bool) -> None:
    """Serve a recording until SIGINT or SIGTERM: its frames as they are, from the first one on."""
    async with server.serving(replay_app(path, rate, in_memory=in_memory), host, port) as bound:
        _announce(
            {"replay": f"http://{host}:{bound}"}, replay=str(path), rate=rate or "as fast as it is read"
        )
        await _stop_signal()


def _announce(relays: dict[str, str], *, pds: dict[str, str] | None = None, **fields: object) -> None:
    """Log where the network is, and the command that reads each relay; of several, by name."""
    commands = {
        name: f"jetstream serve --upstream ws{url.removeprefix('http')}" for name, url in relays.items()
    }
    read_with = commands if len(commands) > 1 else next(iter(commands.values()))
    hosts = (
        {"pds": list(pds.values()) if len(pds) <= PDS_SHOWN else f"{len(pds)}, see listHosts"} if pds else {}
    )
    logger.info("network is running", **fields, **hosts, read_with=read_with)


def _check_replay(given: Mapping[str, object]) -> None:
    """Raise SettingError for arguments of a world: a recording is served as it is."""
    # What differs from its default was given. One that was given with the default's value has no effect
    # either.
    parameters = signature(simulate).parameters
    changed = [name for name, value in given.items() if value != parameters[name].default]
    unused = [_FLAGS.get(name, "--" + name.replace("_", "-")) for name in changed if name not in _OF_A_REPLAY]
    if unused:
        raise SettingError("--replay", str(given["replay"]), f"cannot be with {', '.join(unused)}")


def _relays(texts: list[str] | None, common: Faults) -> tuple[Relay, ...]:
    """Return the relays of `--relay`, or one that loses nothing.

    Each has the faults of `--fault` where it names none of its own. Raises SettingError.
    """
    return tuple(parse_relay(text, common) for text in texts) if texts else (Relay(),)


def _stop_signal() -> asyncio.Future[None]:
    """Return a future that is done when SIGINT or SIGTERM is received."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        """Set the result once: both signals may come."""
        if not stopped.done():
            stopped.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return stopped


def _microseconds(start: str) -> int:
    """Return a time of ISO 8601 in unix microseconds; without a time zone it is UTC. Raises SettingError."""
    try:
        moment = datetime.fromisoformat(start)
    except ValueError as error:
        raise SettingError("--start", start, f"is not a date and time such as {_START}") from error
    return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1_000_000)


def _lines(files: ExitStack, path: Path | None) -> Sink | None:
    """Open a file for lines, unbuffered, so that others can read them at once.

    Returns what writes a line to it; None without a path. `files` closes it. Raises OSError.
    """
    if path is None:
        return None
    file = files.enter_context(path.open("wb", buffering=0))

    def add(line: bytes) -> None:
        """Write one line, whose end is added."""
        file.write(line + b"\n")

    return add


@contextmanager
def _os_errors() -> Iterator[None]:
    """Report an OSError in one line."""
    try:
        yield
    except OSError as error:
        raise JetstreamError(str(error)) from error
