from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import pytest
from tests.full_disk import fill, small_disk

from jetstream.doctor import machine
from jetstream.eventlog.sqlite.export import Extent
from jetstream.settings import Address, Settings

HOUR_US = 3_600_000_000
LOOPBACK = "127.0.0.1"


def log(hours: float, size: int) -> Extent:
    return Extent(1_000, size, 1_000, 1_000 + int(hours * HOUR_US))


@pytest.mark.parametrize(
    ("free", "settings", "held", "level", "words"),
    [
        (10**12, Settings(), None, "ok", "events of 24 h take 6.0 GB (at 500 events/s of 140 bytes)"),
        (10**9, Settings(), None, "warn", "--retention-bytes 0GB"),
        (10**6, Settings(), None, "fail", "1.0 MB free - a log needs"),
        (10**9, Settings(retention_bytes=10**8), None, "ok", "take 100.0 MB"),
        (2 * 10**9, Settings(), log(12, 10**9), "ok", "take 2.0 GB (by the log that is there)"),
        (10**9, Settings(), log(6, 10**9), "warn", "take 4.0 GB (by the log that is there) - set"),
        (10**12, Settings(), log(0.5, 10**9), "ok", "at 500 events/s"),
        (10**12, Settings(retention=3 * 86_400.0), log(24, 10**9), "ok", "events of 72 h take 3.0 GB"),
    ],
)
def test_space_is_compared_with_what_the_log_will_take(
    free: int, settings: Settings, held: Extent | None, level: str, words: str
) -> None:
    finding = machine.judge_space(free, settings, held)
    assert finding.level == level
    assert words in finding.line()


def test_the_space_of_a_directory_that_is_not_there_is_that_of_the_one_above(tmp_path: Path) -> None:
    assert machine.existing(tmp_path / "a" / "b") == tmp_path
    assert machine.check_space(Settings(data_dir=tmp_path / "a"), None).check == "disk"


def test_the_speed_of_the_disk_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    assert machine.sync_ms(tmp_path) > 0
    assert list(tmp_path.iterdir()) == []
    assert machine.judge_speed(1.0).level == "ok"
    slow = machine.judge_speed(35.0)
    assert (slow.level, slow.text) == ("warn", "the disk keeps a write after 35.0 ms")


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs /proc, which no user can write")
def test_a_directory_that_cannot_be_written_is_named() -> None:
    finding = machine.check_speed(Settings(data_dir=Path("/proc")))
    assert finding.level == "fail"
    assert finding.text.startswith("/proc cannot be written: ")
    assert f"let user {os.geteuid()} write there" in finding.hint


def test_a_full_disk_is_not_a_matter_of_privileges(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        fill(disk)
        finding = machine.check_speed(Settings(data_dir=disk))
    assert finding.level == "fail"
    assert finding.text == f"{disk} cannot be written: No space left on device"
    assert finding.hint.startswith("free some space")


def test_open_files_are_compared_with_the_subscribers() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = machine.check_files(Settings(max_subscribers=10), 1)
    assert enough.level == "ok"
    short = machine.check_files(Settings(max_subscribers=hard), 1)
    assert short.level == "warn"
    assert f"LimitNOFILE={hard + 200}" in short.hint
    assert f"LimitNOFILE={hard + 299}" in machine.check_files(Settings(max_subscribers=hard), 100).hint


def test_limits_of_the_kernel_that_are_too_low_are_named(tmp_path: Path) -> None:
    (tmp_path / "net" / "core").mkdir(parents=True)
    (tmp_path / "net" / "netfilter").mkdir()
    settings = Settings(max_subscribers=5_000)
    (only,) = machine.check_kernel(settings, proc=tmp_path)
    assert only.level == "ok"
    (tmp_path / "net" / "core" / "somaxconn").write_text("128\n")
    (tmp_path / "net" / "netfilter" / "nf_conntrack_max").write_text("4000\n")
    found = list(machine.check_kernel(settings, proc=tmp_path))
    assert [each.level for each in found] == ["warn", "warn"]
    assert [each.hint for each in found] == [
        "sysctl -w net.core.somaxconn=4096",
        "sysctl -w net.netfilter.nf_conntrack_max=10000",
    ]
    (tmp_path / "net" / "core" / "somaxconn").write_text("no number\n")
    (tmp_path / "net" / "netfilter" / "nf_conntrack_max").write_text("10000\n")
    assert [each.level for each in machine.check_kernel(settings, proc=tmp_path)] == ["ok"]


def test_a_port_is_free_taken_or_ours() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        address = Address(LOOPBACK, taken.getsockname()[1])
        settings = Settings(listen=address, metrics_listen=Address(LOOPBACK, 0))
        listen, metrics = machine.check_ports(settings, lambda _: False)
        assert (listen.level, metrics.level) == ("fail", "ok")
        assert listen.text == f"{address} cannot be listened on: Address already in use"
        assert listen.hint == "choose another --listen"
        (ours, _) = machine.check_ports(settings, lambda asked: asked == address)
        assert (ours.level, ours.text) == ("ok", f"{address} is served by a Jetstream that runs now")


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    (finding,) = machine.check_ports(Settings(listen=Address("192.0.2.1", 0)), lambda _: False)
    assert finding.level == "fail"


@pytest.mark.parametrize(
    ("edges", "cores", "level", "hint"),
    [
        (7, 8, "ok", ""),
        (8, 8, "warn", "--edges 7, or none with fewer than 3 cores"),
        (2, 1, "warn", "--edges 1, or none with fewer than 3 cores"),
    ],
)
def test_processes_are_compared_with_cores(edges: int, cores: int, level: str, hint: str) -> None:
    found = machine.judge_cores(edges, cores)
    assert (found.level, found.hint) == (level, hint)
