"""What the machine offers a server: disk, ports, open files, and limits of the kernel for sockets.

`check_…` looks at the machine, `judge_…` is pure. The limits hold for this process: doctor must run as
the user of the server, under the same limits.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Final

from jetstream.doctor.finding import Finding, size
from jetstream.eventlog.sqlite.export import Extent
from jetstream.limits import Limits
from jetstream.runtime import file_shortage
from jetstream.settings import Address, Settings

# Bytes of an event on disk, compressed; measured in docs/benchmarks.md.
EVENT_BYTES: Final = 140
# Events a second of a relay of the whole network. The first estimate is made for one.
EVENTS_PER_S: Final = 500
# Free bytes below which a log cannot be written for long, whatever its retention.
SPACE_MIN: Final = 256 << 20
# Seconds of events below which a log does not tell how fast it grows.
SPAN_MIN_S: Final = 3600.0
# Milliseconds of a write until it is on the disk, above which events are noticeably late.
SYNC_WARN_MS: Final = 20.0
# Writes that are measured, and the bytes of each: a batch of events is of that order.
_SYNCS: Final = 20
_SYNC_BYTES: Final = 16 << 10
_DAY_S: Final = 86_400.0


def existing(path: Path) -> Path:
    """Return a directory, or the nearest one above it that exists.

    Before the first start there is no data directory, and doctor creates none.
    """
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def judge_cores(edges: int, cores: int) -> Finding:
    """Say whether there are as many cores as processes that may each use one: the edges, and the ingest."""
    text = f"{cores} cores for {edges} edges and the ingest"
    if edges < cores:
        return Finding("cores", "ok", text)
    return Finding("cores", "warn", text, f"--edges {max(cores - 1, 1)}, or none with fewer than 3 cores")


def check_space(settings: Settings, log: Extent | None) -> Finding:
    """Compare the free space with what the log will need. `log` is what it holds; None: there is none yet."""
    try:
        free = shutil.disk_usage(existing(settings.log_dir)).free
    except OSError as error:
        return Finding("disk", "fail", f"cannot be asked for its space: {error.strerror}", "--data-dir")
    return judge_space(free, settings, log)


def judge_space(free: int, settings: Settings, log: Extent | None) -> Finding:
    """Say whether there is room for the events of the whole retention.

    `free` is bytes. What the log has on disk already counts as room for it. `--retention-bytes` bounds
    the need.
    """
    if free < SPACE_MIN:
        return Finding(
            "disk", "fail", f"{size(free)} free", f"a log needs {size(SPACE_MIN)} at least: free some space"
        )
    # The need is that of a full retention, of which the log may have a part already.
    held = log.bytes_on_disk if log else 0
    per_day, by = _growth(log)
    whole = min(per_day * settings.retention / _DAY_S, settings.retention_bytes or float("inf"))
    text = f"{size(free)} free; events of {settings.retention / 3600:g} h take {size(whole)} ({by})"
    if whole - held <= free:
        return Finding("disk", "ok", text)
    # What fits, in whole GB, with some left for everything else.
    most = int((free + held - SPACE_MIN) / 1e9)
    return Finding(
        "disk",
        "warn",
        text,
        f"set --retention-bytes {most}GB or a shorter --retention, or give it more space",
    )


def _growth(log: Extent | None) -> tuple[float, str]:
    """Return the bytes that a log takes a day, and how that is known.

    By the log that is there, if it has the events of an hour at least; else by the constants above.
    """
    if log is not None and log.span_s >= SPAN_MIN_S and log.events:
        return log.bytes_on_disk / log.span_s * _DAY_S, "by the log that is there"
    per_day = EVENT_BYTES * EVENTS_PER_S * _DAY_S
    return per_day, f"at {EVENTS_PER_S} events/s of {EVENT_BYTES} bytes"


def check_speed(settings: Settings) -> Finding:
    """Measure how long the disk takes to keep what is written.

    It makes `_SYNCS` writes to a temporary file in the directory of the log, or in one above it.
    """
    directory = existing(settings.log_dir)
    try:
        return judge_speed(sync_ms(directory))
    except OSError as error:
        return Finding(
            "speed",
            "fail",
            f"{directory} cannot be written: {error.strerror}",
            _write_hint(error),
        )


def _write_hint(error: OSError) -> str:
    """Return what to do about a directory that cannot be written."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "free some space: a server holds upstream, and stores nothing, until there is some"
    return f"let user {os.geteuid()} write there, or choose another --data-dir"


def sync_ms(directory: Path) -> float:
    """Return the median time in milliseconds of a small write until it is on the disk. Raises OSError.

    The file has no name, and is gone when it is closed, also after a crash.
    """
    # The same place is written again and again: after the first write the file does not grow, so only the
    # data is waited for.
    block, took = b"\0" * _SYNC_BYTES, []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            os.pwrite(file.fileno(), block, 0)
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    return median(took) * 1000


def judge_speed(ms: float) -> Finding:
    """Say whether a disk is fast enough: each event waits for one write to be on the disk."""
    text = f"the disk keeps a write after {ms:.1f} ms"
    if ms <= SYNC_WARN_MS:
        return Finding("speed", "ok", text)
    return Finding("speed", "warn", text, "events are late by this: use a local SSD for --data-dir")


def check_files(settings: Settings, upstreams: int, limits: Limits = Limits()) -> Finding:
    """Compare the limit of open files with the subscribers that are allowed.

    The hard limit counts: a server raises its soft limit to it. `upstreams` is how many it reads.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The same computation as at the start of a server.
    shortage = file_shortage(
        hard, settings.max_subscribers, limits.web.files_reserved, limits.runtime.beside(upstreams)
    )
    if shortage is None:
        return Finding(
            "files", "ok", f"{hard} may be open: enough for {settings.max_subscribers} subscribers"
        )
    text = f"{hard} may be open: there is room for {shortage.subscribers} subscribers"
    return Finding("files", "warn", text, shortage.remedy)


def kernel_needs(settings: Settings, limits: Limits = Limits()) -> Mapping[str, tuple[int, str]]:
    """Return the lowest good value of each file under /proc/sys, and what happens below it.

    In turn: the queue of connections to be accepted, open files of the whole system, and connections
    that a firewall with state tracks.
    """
    return {
        "net/core/somaxconn": (
            min(limits.web.backlog, max(settings.max_subscribers, 128)),
            "clients that connect at once are turned away",
        ),
        "fs/file-max": (settings.max_subscribers + limits.runtime.files_needed, "connections are refused"),
        "net/netfilter/nf_conntrack_max": (
            2 * settings.max_subscribers,
            "the firewall drops connections without a trace",
        ),
    }


def check_kernel(
    settings: Settings, limits: Limits = Limits(), proc: Path = Path("/proc/sys")
) -> Iterator[Finding]:
    """Compare the kernel's limits for sockets with the settings; one that is absent is no limit.

    `proc` is the directory of these limits. On other systems than Linux it does not exist, and all is
    well.
    """
    short = 0
    for name, (needed, effect) in kernel_needs(settings, limits).items():
        value = _number(proc / name)
        if value is not None and value < needed:
            short += 1
            key = name.replace("/", ".")
            yield Finding("kernel", "warn", f"{key} is {value}: {effect}", f"sysctl -w {key}={needed}")
    if not short:
        yield Finding("kernel", "ok", f"its limits allow {settings.max_subscribers} subscribers")


def _number(path: Path) -> int | None:
    """Return the number in a file; None if it cannot be read, or is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def check_ports(settings: Settings, is_ours: Callable[[Address], bool]) -> Iterator[Finding]:
    """Listen on each address for a moment. `is_ours`: whether a Jetstream answers there.

    A port that a running server has is well: the command may run beside it.
    """
    for flag, address in (("--listen", settings.listen), ("--metrics-listen", settings.metrics_listen)):
        if address is not None:
            yield _check_port(flag, address, is_ours)


def _problem(error: OSError) -> str:
    """Return what an error of a socket says, without the address, which is named before it."""
    return (error.strerror or str(error)).partition(" (while ")[0]  # Python repeats the address


def _check_port(flag: str, address: Address, is_ours: Callable[[Address], bool]) -> Finding:
    """Listen on an address, and close that at once. No connection is accepted."""
    try:
        # An empty host is all IPv4 addresses here, and of a server those of IPv6, too.
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        socket.create_server((address.host, address.port), family=family).close()
    # Ports below 1024 (`net.ipv4.ip_unprivileged_port_start`).
    except PermissionError:
        hint = f"{flag} with a port from 1024 on, or CAP_NET_BIND_SERVICE for the server"
        return Finding("port", "fail", f"{address} needs a privilege", hint)
    except OSError as error:
        if is_ours(address):
            return Finding("port", "ok", f"{address} is served by a Jetstream that runs now")
        text = f"{address} cannot be listened on: {_problem(error)}"
        return Finding("port", "fail", text, f"choose another {flag}")
    return Finding("port", "ok", f"{address} is free")
