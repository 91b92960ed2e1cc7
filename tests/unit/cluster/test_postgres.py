"""What is known of a server of PostgreSQL without starting it. tests/foreign/postgresql starts them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jetstream.cluster.members import Member
from jetstream.cluster.postgres import (
    PROGRAMS,
    Postgres,
    PostgresMissing,
    check_access,
    configuration,
    find_binaries,
)
from jetstream.cluster.process import MemberFailed


def install(directory: Path, version: str, programs: tuple[str, ...] = PROGRAMS) -> Path:
    """Put programs into a directory that only say their version."""
    directory.mkdir(parents=True)
    for name in programs:
        (directory / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        (directory / name).chmod(0o755)
    return directory


class TestBinaries:
    def test_those_in_path_come_first(self, tmp_path: Path) -> None:
        install(tmp_path / "versions" / "17" / "bin", "17.2")
        own = install(tmp_path / "own", "16.4")
        assert find_binaries(str(own), tmp_path / "versions") == own

    def test_else_the_newest_of_debian_is_taken(self, tmp_path: Path) -> None:
        for version in ("9", "15", "16"):
            install(tmp_path / "versions" / version / "bin", version + ".1")
        install(tmp_path / "versions" / "17" / "bin", "17.0", programs=("initdb", "psql"))
        assert find_binaries("", tmp_path / "versions") == tmp_path / "versions" / "16" / "bin"

    def test_a_link_in_path_leads_to_the_others(self, tmp_path: Path) -> None:
        own = install(tmp_path / "opt" / "bin", "18beta1")
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "initdb").symlink_to(own / "initdb")
        assert find_binaries(str(tmp_path / "bin"), tmp_path / "none") == own

    def test_an_old_version_is_none(self, tmp_path: Path) -> None:
        install(tmp_path / "14" / "bin", "14.9")
        with pytest.raises(PostgresMissing, match="or later is needed: there is only version 14 in PATH"):
            find_binaries("", tmp_path)

    def test_without_any_it_says_what_to_install(self, tmp_path: Path) -> None:
        with pytest.raises(PostgresMissing, match=r"needed: there is none .* apt install postgresql"):
            find_binaries("", tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Postgres:
    found = Postgres(Member("postgres", 2, 7001), tmp_path, Path("/programs"))
    (found.data / "pg_wal").mkdir(parents=True)
    return found


def test_its_role_and_timeline_are_in_its_data(server: Postgres) -> None:
    assert not server.is_standby
    assert server.timeline == 1
    (server.data / "standby.signal").touch()
    for name in ("00000002.history", "0000000A.history", "0000000A00000000000000FF"):
        (server.data / "pg_wal" / name).touch()
    assert server.is_standby
    assert server.timeline == 10


def test_it_follows_another_one_where_that_listens_now(server: Postgres, tmp_path: Path) -> None:
    primary = Postgres(Member("postgres", 1, 7000), tmp_path, Path("/programs"))
    assert not server.follows(primary)
    (server.data / "standby.signal").touch()
    conninfo = server.data / "postgresql.auto.conf"
    conninfo.write_text("primary_conninfo = 'user=postgres host=127.0.0.1 port=7000 sslmode=prefer'\n")
    assert server.follows(primary)
    conninfo.write_text("primary_conninfo = 'user=postgres host=127.0.0.1 port=70001 sslmode=prefer'\n")
    assert not server.follows(primary)


def test_others_reach_it_by_its_address(server: Postgres) -> None:
    assert server.address == "postgresql://postgres@127.0.0.1:7001/postgres"
    command = server.command()
    assert command[0] == "/programs/postgres"
    assert command[-2:] == ["-c", "cluster_name=postgres-2"]
    assert command[command.index("-p") + 1] == "7001"


def test_settings_are_quoted() -> None:
    assert configuration({"a": 'ANY 1 ("b")', "c": "it's"}) == "a = 'ANY 1 (\"b\")'\nc = 'it''s'\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another user")
def test_a_directory_that_its_user_cannot_reach_is_reported(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(MemberFailed, match=f"{closed} is closed to the user nobody"):
        check_access(closed)
