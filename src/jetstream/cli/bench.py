"""`jetstream bench`: load on any Jetstream, ours or not, and figures of how it bore it."""

from __future__ import annotations

import resource
import socket
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import orjson
from cyclopts import Parameter
from cyclopts.validators import Number

from jetstream.bench import mix
from jetstream.bench.feed import Feed
from jetstream.bench.load import Load, Target, subscribers
from jetstream.bench.measure import Meter, table
from jetstream.bench.ring import accounts
from jetstream.bench.storm import WATCH_S as STORM_WATCH_S
from jetstream.bench.storm import raise_storm
from jetstream.bench.subscription import Readings
from jetstream.errors import JetstreamError, SettingError
from jetstream.settings import parse_address

SUBSCRIBERS_MAX: Final = 100_000
FILES_BESIDE: Final = 50  # pollers, standard streams, modules that are being imported
CONNECT_TIMEOUT_S: Final = 120.0
WARM_UP_S: Final = 2.0
_PATHS: Final = {"classic": "/subscribe", "v1": "/v1/subscribe"}

_Positive = Parameter(validator=Number(gt=0))
_Count = Parameter(validator=Number(gte=0, lte=SUBSCRIBERS_MAX))


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What kind of load, and for how long."""

    subscribers: Annotated[int, _Count] = 100
    """How many, beside one that gets everything and that the others are held against."""
    filter_mix: str = "unfiltered"
    """What they ask for: unfiltered, dids:N (N accounts of its own for each), collections:N (N different
    filters among all), or several with shares, such as unfiltered=9,dids:20=1."""
    seconds: Annotated[float, _Positive] = 30.0
    """How long to measure, once all are connected."""
    wire: Literal["classic", "v1"] = "classic"
    """Which spelling of events to ask for."""
    connect_rate: Annotated[float, _Positive] = 1_000.0
    """New connections a second."""
    check: Annotated[int, Parameter(validator=Number(gte=1))] = 8
    """How many of each kind of filter to read message by message, at least: of the others bytes are counted.
    Those with DIDs are all read."""
    slow: Annotated[int, _Count] = 0
    """How many of the subscribers read too slowly."""
    slow_share: Annotated[float, Parameter(validator=Number(gt=0, lt=1))] = 0.1
    """What part of the stream a slow one reads."""
    storm: Annotated[int, _Count] = 0
    """How many of the subscribers are cut off at the end, to come back all at once."""
    storm_age: Annotated[float, _Positive] = 2.0
    """How many seconds old their cursors are, at most."""
    learn: Annotated[float, _Positive] = 5.0
    """Seconds of listening for accounts to choose from, where DIDs are wanted and nothing is fed."""
    feed: Annotated[float | None, _Positive] = None
    """Be the upstream, too: events a second to send to the server that connects to --feed-listen."""
    feed_listen: str = "127.0.0.1:7777"
    """Where to be the upstream."""
    frames: Path | None = None
    """Recording to feed; else frames are simulated."""
    repos: Annotated[int, _Positive] = 50_000
    """Accounts that the fed frames come from."""
    pid: int | None = None
    """Process of the server, where it runs here: its CPU time and memory are shown."""
    json: Path | None = None
    """File to write the figures to."""


class WrongError(JetstreamError):
    """Subscribers did not get what they must."""


def bench(url: str = "ws://127.0.0.1:6008", /, options: Options | None = None) -> None:
    """Subscribe many times over to a Jetstream, check what arrives, and say how late it was.

    Exits with status 1 when a subscriber lost an event, got one twice, out of order or unwanted. Needs Linux.

    Parameters
    ----------
    url
        The Jetstream, over ws://; with a path, that is used, whatever the wire.
    """
    options = options or Options()
    target = _target(url, _PATHS[options.wire])
    parts = _parse_mix(options.filter_mix)
    if options.slow + options.storm > options.subscribers:
        problem = f"is fewer than the {options.slow + options.storm} slow and cut off ones"
        raise SettingError("--subscribers", options.subscribers, problem)
    _raise_file_limit(options.subscribers)
    with ExitStack() as stack:
        feed = None
        if options.feed is not None:
            feed = _feed(options)
            stack.callback(feed.stop)
        load = Load(target, Readings(fed=feed is not None), slow_share=options.slow_share)
        stack.callback(load.close)
        _run(options, parts, load, feed)
        findings = load.readings.findings
    for example in findings.examples:
        _say(example)
    if findings.counts:
        raise WrongError(f"{findings.counts.total():,} subscribers or events were wrong, see above")


def _run(options: Options, parts: list[mix.Part], load: Load, feed: Feed | None) -> None:
    """Connect, measure, raise a storm if one is asked for, and print it all."""
    rng = Random(1)  # noqa: S311 - the same load every time
    meter = Meter(load, options.pid, _say)
    load.begin()
    if feed is not None and options.feed is not None:
        feed.begin(rate=options.feed)
    wanted = _filters(options, parts, _accounts(options, parts, load), rng)
    made = subscribers(
        wanted, load.readings, rng, check=options.check, slow=options.slow, storm=options.storm
    )
    last_accepted_s = load.connect(made, options.connect_rate, CONNECT_TIMEOUT_S)
    load.run(WARM_UP_S)
    figures = meter.measure(options.seconds, last_accepted_s)
    rows = table(figures)
    report = {"url": str(load.target), "filter_mix": options.filter_mix} | asdict(figures)
    if options.storm:
        storm = raise_storm(load, made[-options.storm :], options.storm_age, rng)
        rows.append(("storm", f"{storm.served:,} of {storm.returned:,} served"))
        rows.append(("", f"the last after {storm.last_served_s:.2f} s"))
        load.run(STORM_WATCH_S - storm.seconds)
        meter.judge()
        rows.append(("", f"furthest behind {STORM_WATCH_S:.0f} s after: {load.lag_ms():,.1f} ms"))
        report["storm"] = asdict(storm) | {"lag_ms": load.lag_ms()}
    for name, value in rows:
        _say(f"{name:<28} {value}")
    if options.json is not None:
        options.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))


def _say(words: str) -> None:
    print(words, flush=True)  # noqa: T201 - what the command is for


def _target(url: str, path: str) -> Target:
    parts = urlsplit(url if "://" in url else f"ws://{url}")
    if parts.scheme != "ws":
        raise SettingError("URL", url, "is not ws://: aim at the server itself, not at what does TLS for it")
    try:
        port = parts.port or 80
        host = socket.getaddrinfo(parts.hostname, port, socket.AF_INET)[0][4][0]
    except (ValueError, OSError) as error:
        raise SettingError("URL", url, f"cannot be resolved: {error}") from error
    return Target(str(host), port, parts.path if parts.path not in {"", "/"} else path)


def _parse_mix(text: str) -> list[mix.Part]:
    try:
        return mix.parse(text)
    except ValueError as error:
        raise SettingError("--filter-mix", text, f"cannot be read: {error}") from error


def _filters(options: Options, parts: list[mix.Part], known: list[str], rng: Random) -> list[mix.Wanted]:
    try:
        return mix.filters(parts, options.subscribers, known, rng)
    except ValueError as error:
        raise SettingError("--filter-mix", options.filter_mix, f"asks for too much: {error}") from error


def _feed(options: Options) -> Feed:
    try:
        host, port = parse_address(options.feed_listen)
    except ValueError as error:
        raise SettingError("--feed-listen", options.feed_listen, str(error)) from error
    feed = Feed(options.frames, options.repos, host or "127.0.0.1", port)
    _say(f"feeding: start the server with --upstream {feed.url}")
    feed.wait_connected()
    return feed


def _accounts(options: Options, parts: list[mix.Part], load: Load) -> list[str]:
    """Return the accounts that DIDs are chosen from: those that are fed, or those that are heard of."""
    if options.feed is not None:
        return accounts(options.repos)
    if any(part.kind == "dids" for part in parts):
        load.run(options.learn)
    return load.truth.dids


def _raise_file_limit(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + FILES_BESIDE
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SettingError("--subscribers", count, f"needs {needed} open files, and {hard} are allowed")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
