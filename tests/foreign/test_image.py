"""The image of the Dockerfile, built and run: see `deploy/image/build`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.foreign.conftest import missing

ROOT = Path(__file__).resolve().parents[2]


# The base is made from Debian's packages, and the image from all locked wheels.
@pytest.mark.timeout(600)
def test_it_is_built_runs_as_its_own_user_and_is_healthy(tmp_path: Path) -> None:
    for program in ("buildah", "debootstrap"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            missing(program)
    if os.geteuid() != 0:
        pytest.skip("a base image is made as root")
    command = [ROOT / "deploy" / "image" / "build", tmp_path]
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        logs = "".join(log.read_text()[-2000:] for log in tmp_path.glob("*.log"))
        assert done.returncode == 0, done.stdout + done.stderr + logs
        assert "image: it runs as its own user, is healthy" in done.stdout
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)  # 2 GB
