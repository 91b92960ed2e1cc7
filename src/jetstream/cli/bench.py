"""`jetstream bench`: put load on any Jetstream, check what arrives, and measure it.

    target, filters ─▶ Load: connect ─▶ warm up ─▶ measure ─▶ figures, findings ─▶ table, exit code

What is here reads the flags, runs these steps and prints. The work is in `bench/`: one thread, with its
own event loop over epoll, at a fraction of the server's cost.
"""

from __future__ import annotations

import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException
from pathlib import Path
from random import Random
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit
from urllib.request import urlopen

import orjson
from cyclopts import Parameter
from cyclopts.validators import Number

from jetstream.bench import mix
from jetstream.bench.compression import decompressor
from jetstream.bench.load import Load, Target, subscribers
from jetstream.bench.measure import Meter, table
from jetstream.bench.subscription import Readings
from jetstream.bench.transport import TRANSPORTS
from jetstream.errors import JetstreamError, SettingError

# An upper bound against typing errors.
SUBSCRIBERS_MAX: Final = 100_000
# As a shell has it for a command that a signal has ended.
EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
FILES_BESIDE: Final = 50  # files besides subscribers: epoll, standard streams, modules being imported
# Seconds in which all subscribers must be accepted.
CONNECT_TIMEOUT_S: Final = 120.0
# Seconds and bytes for the server's own dictionary, which has 32 KiB.
FETCH_TIMEOUT_S: Final = 10.0
DICTIONARY_BYTES_MAX: Final = 1 << 20
# Where each wire is served, if the URL has no path.
_PATHS: Final = {"classic": "/subscribe", "v1": "/v1/subscribe"}

# Checks of flags that several have.
_Positive = Parameter(validator=Number(gt=0))
_Count = Parameter(validator=Number(gte=0, lte=SUBSCRIBERS_MAX))


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The kind of load, and for how long."""

    subscribers: Annotated[int, _Count] = 100
    """Number of subscribers, besides one that receives everything and that the others are compared with."""
    filter_mix: str = "unfiltered"
    """Filters of the subscribers: unfiltered, dids:N (N accounts for each), collections:N (N different
    filters in all), or several with shares, such as unfiltered=9,dids:20=1."""
    warm_up: Annotated[float, _Positive] = 2.0
    """Seconds to wait before measuring, once all are connected."""
    seconds: Annotated[float, _Positive] = 30.0
    """Seconds to measure."""
    wire: Literal["classic", "v1"] = "classic"
    """Format of the events."""
    compress: bool = False
    """Ask for events that are compressed with the server's own dictionary, which is fetched first."""
    transport: Literal["websocket", "ndjson", "sse"] = "websocket"
    """How to subscribe. The last two are event streams over HTTP, which only this server has."""
    zstd_dictionary: Path | None = None
    """Ask for compressed events as v1 clients do, and read them with the dictionary in this file."""
    connect_rate: Annotated[float, _Positive] = 1_000.0
    """New connections a second."""
    check: Annotated[int, Parameter(validator=Number(gte=1))] = 8
    """Subscribers of each kind of filter to check message by message, at least. Of the others bytes are
    counted. All subscribers with DIDs are checked."""
    slow: Annotated[int, _Count] = 0
    """Number of subscribers that read too slowly."""
    slow_share: Annotated[float, Parameter(validator=Number(gt=0, lt=1))] = 0.1
    """Share of the stream that a slow subscriber reads."""
    learn: Annotated[float, _Positive] = 5.0
    """Seconds to listen for accounts to choose from, if DIDs are wanted."""
    pid: int | None = None
    """Process of the server, if it runs here: its CPU time and memory are shown."""
    json: Path | None = None
    """File to write the figures to."""


class DeliveryError(JetstreamError):
    """Subscribers did not receive exactly what they asked for."""


def bench(url: str = "ws://127.0.0.1:6008", /, options: Options | None = None) -> None:
    """Load a Jetstream with subscribers, check what they receive, and measure the delay.

    Exits with status 1 if a subscriber lost an event, or received one twice, out of order or against its
    filter. Ctrl-C prints what was measured until then, and exits with status 130. Needs Linux.

    Parameters
    ----------
    url
        The Jetstream, over ws://. A path in it is used as it is, whatever --wire says.
    """
    options = options or Options()
    readings = Readings(transport=TRANSPORTS[options.transport])
    target = _target(url, readings.transport.path or _PATHS[options.wire])
    # Event streams have one path for all wires, and no compression of messages.
    if readings.transport.path:
        target = replace(target, query=(("wire", options.wire),))
        if options.compress or options.zstd_dictionary is not None:
            raise SettingError("--transport", options.transport, "is never compressed: use WebSockets")
    if options.compress:
        dictionary_id, readings.decompress = _own_dictionary(target)
        target = replace(target, query=(("zstdDictionary", str(dictionary_id)),))
    elif options.zstd_dictionary is not None:
        readings.decompress = _decompressor(options.zstd_dictionary)
        target = replace(target, query=(("compress", "true"), ("wire", options.wire)))
    # What can be wrong with the command line by itself is found before the first connection.
    parts = _parse_mix(options.filter_mix)
    if options.slow > options.subscribers:
        raise SettingError(
            "--subscribers", options.subscribers, f"is fewer than the {options.slow} slow ones"
        )
    _raise_file_limit(options.subscribers)
    load = Load(target, readings, slow_share=options.slow_share)
    try:
        with _interruptible(load):
            _run(options, parts, load)
    finally:
        load.close()
    # Findings come last, below the figures, where they are seen. They decide the exit code also after
    # Ctrl-C.
    findings = load.readings.findings
    for example in findings.examples:
        _print(example)
    if findings.counts:
        raise DeliveryError(f"{findings.counts.total():,} subscribers or events were wrong, see above")
    if load.interrupted:
        sys.exit(EXIT_INTERRUPTED)


@contextmanager
def _interruptible(load: Load) -> Iterator[None]:
    """End the load at the first Ctrl-C; a second one ends the process."""

    def interrupt(number: int, _frame: object) -> None:
        """Let the step that runs end early. The next signal has its default effect."""
        signal.signal(number, signal.SIG_DFL)
        load.interrupt()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run(options: Options, parts: list[mix.Part], load: Load) -> None:
    """Connect, measure, and print the figures.

    After an interruption it prints how far it came, and what was measured if anything was. Raises
    SettingError for filters that cannot be made of the accounts that were seen.
    """
    # Two runs against one server differ only in what it sends.
    rng = Random(1)  # noqa: S311 - the same load every time
    meter = Meter(load, options.pid, _print)
    load.begin()
    # Filters by DID need accounts that exist: listen for some first.
    if any(part.kind == "dids" for part in parts):
        load.run(options.learn)
    if load.interrupted:
        _print("interrupted before any subscriber was connected")
        return
    # After `learn`, the reference connection has seen accounts to choose from.
    wanted = _filters(options, parts, load.truth.dids, rng)
    connections = subscribers(wanted, load.readings, rng, check=options.check, slow=options.slow)
    last_accepted_s = load.connect(connections, options.connect_rate, CONNECT_TIMEOUT_S)
    load.run(options.warm_up)
    if load.interrupted:
        accepted = sum(1 for one in connections if one.accepted)
        _print(f"interrupted before anything was measured: {accepted:,} of {len(connections):,} connected")
        return
    figures = meter.measure(options.seconds, last_accepted_s)
    if load.interrupted:
        _print(f"interrupted after {figures.seconds:.1f} of {options.seconds:g} s")
    for name, value in table(figures):
        _print(f"{name:<28} {value}")
    if options.json is not None:
        report = {"url": str(load.target), "filter_mix": options.filter_mix} | asdict(figures)
        options.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the output of the command


def _target(url: str, path: str) -> Target:
    """Return where to connect, with the address that a host name has now. Raises SettingError.

    It is looked up once, so that thousands of connections do not ask the DNS. `path` is for a URL
    without one.
    """
    parts = urlsplit(url if "://" in url else f"ws://{url}")
    if parts.scheme != "ws":
        raise SettingError(
            "URL", url, "is not ws://: use the address of the server itself, without a TLS proxy"
        )
    try:
        port = parts.port or 80
        host = socket.getaddrinfo(parts.hostname, port, socket.AF_INET)[0][4][0]
    except (ValueError, OSError) as error:
        raise SettingError("URL", url, f"cannot be resolved: {error}") from error
    return Target(str(host), port, parts.path if parts.path not in {"", "/"} else path)


def _decompressor(path: Path) -> Callable[[bytes], bytes]:
    """Return what decompresses messages with the dictionary of a file. Raises SettingError."""
    try:
        return decompressor(path.read_bytes())
    except OSError as error:
        raise SettingError("--zstd-dictionary", str(path), f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingError("--zstd-dictionary", str(path), f"is not a dictionary: {error}") from error


def _own_dictionary(target: Target) -> tuple[int, Callable[[bytes], bytes]]:
    """Return the ID of a server's own dictionary, and what decompresses a message. Raises SettingError.

    The ID is in bytes 4 to 8 of a dictionary, little-endian (RFC 8878, 5).
    """
    url = f"http://{target.host}:{target.port}/zstd-dictionary"
    try:
        with urlopen(url, timeout=FETCH_TIMEOUT_S) as response:
            data = response.read(DICTIONARY_BYTES_MAX)
        return int.from_bytes(data[4:8], "little"), decompressor(data)
    except (OSError, HTTPException, ValueError) as error:
        raise SettingError("--compress", url, f"is not a dictionary: {error}") from error


def _parse_mix(text: str) -> list[mix.Part]:
    """Return the parts of `--filter-mix`. Raises SettingError."""
    try:
        return mix.parse(text)
    except ValueError as error:
        raise SettingError("--filter-mix", text, f"cannot be read: {error}") from error


def _filters(options: Options, parts: list[mix.Part], known: list[str], rng: Random) -> list[mix.Wanted]:
    """Return the filter of each subscriber. `known` are the accounts that were seen. Raises SettingError."""
    try:
        return mix.filters(parts, options.subscribers, known, rng)
    except ValueError as error:
        raise SettingError("--filter-mix", options.filter_mix, f"asks for too much: {error}") from error


def _raise_file_limit(count: int) -> None:
    """Allow a file for each subscriber, and `FILES_BESIDE` more.

    Raises SettingError if the hard limit of the system is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + FILES_BESIDE
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SettingError("--subscribers", count, f"needs {needed} open files, and the limit is {hard}")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
