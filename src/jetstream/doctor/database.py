"""Whether the PostgreSQL database of a log can be used, and how long a commit takes there.

Nothing is written but a temporary table, which its transaction drops. Whether the tables of the log are
there is not looked at: the process that leads creates them.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from jetstream.clock import STEP_US, unix_us
from jetstream.doctor.finding import Finding
from jetstream.errors import LogError
from jetstream.eventlog.opening import require_driver

# As `server_version_num` has it, which is 10,000 times the major version: PostgreSQL 15.
VERSION_MIN: Final = 150_000
# Milliseconds of a commit above which events come noticeably late: each waits for one before it is sent.
SLOW_MS: Final = 20.0


def check_database(address: str, *, writes: bool = True) -> Finding:
    """Connect, and measure. Without `writes`, the server may be a replica, and no commit is made.

    `address` is the URL of `--log`, with its password. A database that cannot be used is a finding;
    raises SettingError without the driver.
    """
    require_driver()
    try:
        version, now_us, synchronous, commit_ms = asyncio.run(_measured(address, writes=writes))
    except LogError as error:
        remedy = "check the address of --log, that the server runs, and that pg_hba.conf lets this machine in"
        return Finding("database", "fail", f"cannot be used: {error.problem}", remedy)
    return judge_database(version, abs(now_us - unix_us()), synchronous, commit_ms)


def judge_database(version: int, off_us: int, synchronous_commit: str, commit_ms: float) -> Finding:
    """Say whether a database is fit for a log.

    `off_us` is how far its clock and this machine's are apart, in microseconds. Without
    `synchronous_commit`, a commit is confirmed before it is on a disk. The first problem found is the
    one that is named.
    """
    text = f"PostgreSQL {version // 10_000}, a commit takes {commit_ms:.1f} ms"
    if version < VERSION_MIN:
        return Finding("database", "fail", text, "use PostgreSQL 15 or later")
    if off_us > STEP_US:
        problem = f"{text}; its clock and this machine's differ by {off_us / 1e6:,.0f} s"
        return Finding("database", "fail", problem, "set both right: else this process does not lead")
    if synchronous_commit == "off":
        problem = f"{text}; synchronous_commit is off"
        return Finding("database", "warn", problem, "set it to on: else a crash loses what readers have seen")
    if commit_ms > SLOW_MS:
        return Finding("database", "warn", text, "give the database a faster disk, or a nearer standby")
    return Finding("database", "ok", text, "")


async def _measured(address: str, *, writes: bool) -> tuple[int, int, str, float]:
    """Return the version, the time, `synchronous_commit`, and the milliseconds of a commit.

    The time is in unix microseconds. Without `writes` the last one is 0. Raises LogError.
    """
    from jetstream.eventlog.postgresql.connection import connect, drop, translated  # noqa: PLC0415

    connection = None
    with translated(address):
        try:
            connection = await connect(address, writes=writes)
            version = int(await connection.fetchval("SHOW server_version_num"))
            synchronous = str(await connection.fetchval("SHOW synchronous_commit"))
            began = time.perf_counter()
            # The table changes the catalog, so the commit is in the WAL: it waits for the disk and for a
            # synchronous standby, as one of the log does.
            if writes:
                async with connection.transaction():
                    await connection.execute("CREATE TEMPORARY TABLE measured (id integer) ON COMMIT DROP")
            commit_ms = (time.perf_counter() - began) * 1e3
            now_us: int = await connection.fetchval(
                "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
            )
        finally:
            await drop(connection)
    return version, now_us, synchronous, commit_ms
