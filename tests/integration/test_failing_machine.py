"""A machine that fails: its clock is wrong, its files are lost or damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.builders import commit, like
from tests.relay import Relay, numbered
from tests.serving import LOOPBACK, Start, figures, health, published, running, until
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.clock import boot_id, unix_us
from jetstream.eventlog.sqlite.rebase import rebase
from jetstream.eventlog.sqlite.reservation import FILE
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.limits import Limits, LogLimits, RuntimeLimits
from jetstream.settings import Settings

HOUR_US = 3600 * 1_000_000
LIMITS = Limits(runtime=RuntimeLimits(watch_every_s=0.01))


async def stored(
    relay: Relay,
    data_dir: Path,
    last: int,
    clock: Callable[[], int] = unix_us,
    limits: Limits = LIMITS,
) -> int:
    """Serve until so many frames are stored, ten at a time; stop in good order, and return the tip."""
    settings = Settings(upstream=relay.url, listen=LOOPBACK, data_dir=data_dir, upstream_cursor=0)
    async with running(Service(settings, limits, clock=clock)) as service:
        for seq in range(1, last + 1, 10):
            relay.publish(frames(seq, min(seq + 9, last)))
            await published(service, min(seq + 9, last))
            await service.log.maintain()
        return service.log.tip


def frames(first: int, last: int) -> list[tuple[int, bytes]]:
    return numbered([commit(seq, [like(seq)]) for seq in range(first, last + 1)])


@pytest.mark.parametrize("step", [2 * HOUR_US, 70 * 365 * 24 * HOUR_US])
async def test_a_step_of_the_clock_is_told_and_changes_no_time(relay: Relay, start: Start, step: int) -> None:
    ahead = [0]
    relay.publish(frames(1, 3))
    service = await start(
        limits=LIMITS, upstream_cursor=0, clock=lambda: unix_us() + ahead[0], retention=60.0
    )
    await published(service, 3)
    ahead[0] = step
    relay.publish(frames(4, 6))
    await published(service, 6)
    await service.log.maintain()
    assert service.log.tip - unix_us() < 1_000_000
    assert service.log.statistics().events == 6
    await until(lambda: "clock" in service.conditions.reasons)
    status, body = await health(service.port)
    assert (status, body["status"]) == (200, "degraded")
    assert "--clock-settle" in body["reasons"][0]
    ahead[0] = 0
    await until(lambda: not service.conditions.reasons)


async def test_a_step_that_lasts_is_followed(relay: Relay, start: Start) -> None:
    ahead = [0]
    relay.publish(frames(1, 3))
    clock_settle = 0.2
    service = await start(
        limits=LIMITS,
        upstream_cursor=0,
        clock=lambda: unix_us() + ahead[0],
        clock_settle=clock_settle,
        retention=60.0,
    )
    await published(service, 3)
    ahead[0] = HOUR_US
    await until(lambda: service._clock() - unix_us() > HOUR_US // 2)
    await service.log.maintain()
    assert service.log.statistics().events == 3  # none became older by that
    relay.publish(frames(4, 4))
    await published(service, 4)
    assert service.log.tip > unix_us() + HOUR_US // 2


@pytest.mark.skipif(boot_id() == "unknown", reason="the machine does not name its boots")
@pytest.mark.parametrize("step", [2 * HOUR_US, 70 * 365 * 24 * HOUR_US])
async def test_a_clock_that_stepped_while_no_server_ran_is_not_followed(
    relay: Relay, tmp_path: Path, start: Start, step: int
) -> None:
    await stored(relay, tmp_path / "one", 3)
    relay.publish(frames(4, 6))
    service = await start(
        limits=LIMITS, data_dir=tmp_path / "one", clock=lambda: unix_us() + step, retention=60.0
    )
    await published(service, 6)
    await service.log.maintain()
    assert service.log.tip - unix_us() < 1_000_000
    assert service.log.statistics().events == 6
    assert "--clock-settle" in service.conditions.reasons["clock"]


async def test_positions_ahead_of_the_clock_are_told_and_come_back(relay: Relay, tmp_path: Path) -> None:
    directory = tmp_path / "one"
    await stored(relay, directory, 3, lambda: unix_us() + HOUR_US)
    settings = Settings(upstream=relay.url, listen=LOOPBACK, data_dir=directory)
    async with running(Service(settings)) as service:
        status, body = await health(service.port)
        assert (status, body["status"]) == (200, "degraded")
        assert "jetstream log rebase-time" in body["reasons"][0]
        seen = await figures(service.port)
        assert seen['jetstream_condition{condition="clock"}'] == 1
        assert 3_500 < seen["jetstream_log_ahead_seconds"] < 3_700
    assert rebase(directory, unix_us()).events == 3
    async with running(Service(settings)) as service:
        assert (await health(service.port))[1]["status"] == "ok"
        async with subscribe(service.port, cursor=1) as subscriber:
            assert [event["commit"]["rkey"] for event in await subscriber.events(3)] == ["1", "2", "3"]


async def test_a_reader_passes_over_damage_and_health_says_so(
    relay: Relay, start: Start, tmp_path: Path
) -> None:
    await stored(relay, tmp_path / "one", 100, limits=Limits(log=LogLimits(segment_events=10)))
    with closing(sqlite3.connect(tmp_path / "one" / DATABASE)) as connection, connection:
        first, last, events = connection.execute(
            "SELECT first_us, last_us, events FROM segment ORDER BY last_us LIMIT 1"
        ).fetchone()
        connection.execute("UPDATE segment SET bodies = zeroblob(9) WHERE last_us = ?", (last,))
    service = await start(limits=LIMITS, data_dir=tmp_path / "one")
    for _ in range(3):
        async with subscribe(service.port, cursor=1) as subscriber:
            times = [event["time_us"] for event in await subscriber.events(100 - events)]
            assert times[0] > last
    status, body = await health(service.port)
    assert (status, body["status"], body["log"]["damaged"]) == (200, "degraded", 1)
    assert f"from position {first} to {last}" in body["reasons"][0]
    assert (await figures(service.port))["jetstream_log_damaged"] == 1


@pytest.mark.parametrize("content", [b"", b"x", b"boot", b"\xff\x00", b"boot 99999999999999999999"])
async def test_a_server_starts_without_its_reservation(
    relay: Relay, tmp_path: Path, start: Start, content: bytes
) -> None:
    tip = await stored(relay, tmp_path / "one", 3)
    (tmp_path / "one" / FILE).write_bytes(content)
    with capture_logs() as lines:
        service = await start(limits=LIMITS, data_dir=tmp_path / "one")
    assert "log: the reservation is damaged and written again" in [line["event"] for line in lines]
    assert tip < service.log.tip <= unix_us() + 31_000_000
    async with subscribe(service.port, cursor=1) as subscriber:
        assert len(await subscriber.events(3)) == 3


@pytest.mark.parametrize("lost", ["empty", "missing"])
async def test_a_lost_database_is_a_warning(relay: Relay, tmp_path: Path, start: Start, lost: str) -> None:
    tip = await stored(relay, tmp_path / "one", 3)
    (tmp_path / "one" / DATABASE).unlink()
    if lost == "empty":
        (tmp_path / "one" / DATABASE).touch()
    with capture_logs() as lines:
        service = await start(limits=LIMITS, data_dir=tmp_path / "one")
    (line,) = [line for line in lines if "starting a new one" in line["event"]]
    assert line["log_level"] == "warning"
    assert service.log.tip >= tip
