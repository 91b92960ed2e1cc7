"""`jetstream doctor`: what to change on this machine or in the settings before, or while, a server runs.

    settings ─▶ examine: one check after another ─▶ Finding ─▶ a line each, or one JSON array at the end

Lines are printed as they are found: the check of an upstream may take ten seconds and more. Settings that
cannot be used at all end the command as they end a server, with exit code 2 and no findings.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Final

import orjson
from cyclopts import Parameter

from jetstream.cli.go_flags import GoFlags
from jetstream.clock import unix_us
from jetstream.doctor import machine
from jetstream.doctor.access import check_access
from jetstream.doctor.database import check_database
from jetstream.doctor.finding import Finding, well
from jetstream.doctor.firehose import judge, judge_clock
from jetstream.doctor.log import check_log, read_extent
from jetstream.doctor.probe import look_at
from jetstream.doctor.running import check_running, is_jetstream
from jetstream.roles import reads_upstream
from jetstream.settings import Address, Settings, refuse_file, similar_variable, unused_variables
from jetstream.upstreams import Upstream, all_upstreams

# Also for warnings, so that a script need not read the lines.
EXIT_TO_CHANGE: Final = 1
# Upstreams that are asked. A file may have thousands, and each takes some seconds.
UPSTREAMS_MAX: Final = 50


def doctor(
    settings: Settings | None = None,
    *,
    go: Annotated[GoFlags | None, Parameter(name="*", show=False)] = None,  # noqa: ARG001 - accepted as in `serve`
    json: Annotated[bool, Parameter(help="Print one JSON array.", negative=())] = False,
) -> None:
    """Say what to change so that `jetstream serve` with the same flags works well.

    One line for each check: ok, warn or fail, and what to do. Exits with 0 if all is well, with 1 if there is
    something to change. A server may be running.
    """
    settings = settings or Settings()
    refuse_file(settings.data_dir)
    if settings.database is None:
        refuse_file(settings.log_dir, "--log")
    # With --json, nothing is printed before the end, so that the output is one array.
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not json:
            _print(finding.line())
    if json:
        _print(orjson.dumps([each._asdict() for each in findings], option=orjson.OPT_INDENT_2).decode())
    if not well(findings):
        sys.exit(EXIT_TO_CHANGE)


def examine(settings: Settings, is_ours: Callable[[Address], bool] | None = None) -> Iterator[Finding]:
    """Yield the finding of each check. Raises SettingError for upstreams that cannot be used.

    `is_ours` tells whether a Jetstream answers at an address; by default it is asked over HTTP. Each
    check runs when its finding is wanted, in the order of the lines.
    """
    yield from check_variables(os.environ)
    # An edge has no upstreams to look at; its clock is not compared with anybody's.
    upstreams: Sequence[Upstream] = ()
    if reads_upstream(settings.role):
        upstreams = all_upstreams(settings.upstream, settings.upstream_file)
        yield from _check_upstreams(upstreams)
    yield from _check_log(settings)
    # A port in use is well if a Jetstream has it, which then says what it complains about.
    yield from machine.check_ports(settings, is_ours or is_jetstream)
    yield from check_running(settings.listen)
    yield machine.check_files(settings, len(upstreams))
    if settings.edges:
        yield machine.judge_cores(settings.edges, os.cpu_count() or 1)
    yield from machine.check_kernel(settings)
    yield from check_access(settings)


def _check_log(settings: Settings) -> Iterator[Finding]:
    """Check the log, and of one that this server writes, the disk.

    An edge only reads, so neither space nor speed of its disk matter. With PostgreSQL, the disk is the
    database's.
    """
    writes = reads_upstream(settings.role)
    if settings.database is not None:
        yield check_database(settings.database, writes=writes)
        return
    if writes:
        yield machine.check_space(settings, read_extent(settings.log_dir))
        yield machine.check_speed(settings)
    yield check_log(settings.log_dir, unix_us())


def _check_upstreams(upstreams: Sequence[Upstream]) -> Iterator[Finding]:
    """Look at the first `UPSTREAMS_MAX` upstreams, at several at a time, and judge each and the clock."""
    seen = asyncio.run(look_at(upstreams[:UPSTREAMS_MAX]))
    yield from map(judge, seen)
    if len(upstreams) > UPSTREAMS_MAX:
        yield Finding("upstream", "ok", f"{len(upstreams) - UPSTREAMS_MAX} more were not asked")
    yield judge_clock(seen)


def check_variables(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a finding for each variable that is probably meant to be another one."""
    _, unknown = unused_variables(environment)
    for name in unknown:
        if meant := similar_variable(name):
            yield Finding("settings", "warn", f"{name} is unknown, and ignored", f"did you mean {meant}?")


def _print(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)  # noqa: T201 - the output of the command
