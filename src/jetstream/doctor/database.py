"""Whether the PostgreSQL database of a log can be used, and how long a commit takes there."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from jetstream.clock import STEP_US, unix_us
from jetstream.doctor.finding import Finding
from jetstream.errors import LogError
from jetstream.eventlog.opening import require_driver

VERSION_MIN: Final = 150_000  # as `server_version_num` has it: PostgreSQL 15
SLOW_MS: Final = 20.0  # of a commit: above this, events come noticeably late


def check_database(address: str, *, writes: bool = True) -> Finding:
    """Connect, and measure. Without `writes`, the server may be a replica.

    Raises SettingError without the driver.
    """
    require_driver()
    try:
        version, now_us, synchronous, commit_ms = asyncio.run(_measured(address, writes=writes))
    except LogError as error:
        remedy = "check the address of --log, that the server runs, and that pg_hba.conf lets this machine in"
        return Finding("database", "fail", f"cannot be used: {error.problem}", remedy)
    return judge_database(version, abs(now_us - unix_us()), synchronous, commit_ms)


def judge_database(version: int, off_us: int, synchronous_commit: str, commit_ms: float) -> Finding:
    """Say whether a database is fit for a log."""
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
    """Return the version, the time, `synchronous_commit`, and the milliseconds of a commit."""
    from jetstream.eventlog.postgresql.connection import connect, drop, translated  # noqa: PLC0415

    connection = None
    with translated(address):
        try:
            connection = await connect(address, writes=writes)
            version = int(await connection.fetchval("SHOW server_version_num"))
            synchronous = str(await connection.fetchval("SHOW synchronous_commit"))
            began = time.perf_counter()
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
