"""The scripts of docker-compose.cluster.yaml, with real servers, and without containers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.foreign.postgresql.server import Server

SCRIPTS = Path(__file__).resolve().parents[3] / "deploy" / "cluster"


@pytest.fixture
def entry_point(tmp_path: Path) -> Path:
    """A stand-in for the entry point of the image, which says what it is told to run."""
    program = tmp_path / "bin" / "docker-entrypoint.sh"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    return program


def test_the_second_server_copies_the_first_one_and_follows_it(
    own_server: Callable[..., Server], entry_point: Path, tmp_path: Path
) -> None:
    primary = own_server()
    data = tmp_path / "data"
    environment = {
        "PATH": f"{entry_point.parent}:{primary.binaries}:{os.environ['PATH']}",
        "PGHOST": "127.0.0.1",
        "PGPORT": str(primary.port),
        "POSTGRES_USER": "postgres",
        "POSTGRES_DB": "postgres",
    }

    def run(script: str, *arguments: str, **more: str) -> str:
        return subprocess.run(
            ["sh", SCRIPTS / script, *arguments],
            env={**environment, **more},
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout.strip()

    run("init.sh", PGDATA=str(primary.data))
    assert "host replication postgres samenet scram-sha-256" in (primary.data / "pg_hba.conf").read_text()
    second = {"PGDATA": str(data), "NAME": "postgres-2"}
    started = "postgres -c cluster_name=postgres-2"
    assert run("postgres.sh", "postgres", PRIMARY="127.0.0.1", **second) == started
    assert (data / "standby.signal").exists()
    assert "synchronous_standby_names = 'ANY 1" in (data / "postgresql.auto.conf").read_text()

    # With data, it starts as it is, whatever it was told first.
    assert run("postgres.sh", "postgres", PRIMARY="nowhere.invalid", **second) == started
    assert run("postgres.sh", "postgres", PRIMARY="", PGDATA=str(tmp_path / "none"), NAME="n") == (
        "postgres -c cluster_name=n"
    )
    assert not (tmp_path / "none").exists()
