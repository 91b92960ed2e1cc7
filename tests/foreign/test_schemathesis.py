"""Schemathesis asks a running server for what `/openapi.json` describes, and judges the answers."""

from __future__ import annotations

import os
import sys
from asyncio import create_subprocess_exec
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

from tests.builders import identity
from tests.integration.test_openapi import paths
from tests.relay import Relay
from tests.serving import Start, published

from jetstream.limits import Limits, WebLimits
from jetstream.token_bucket import Rate

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = ROOT / "tests" / "openapi" / "schemathesis.toml"
MANY = Rate(1e6, 1_000_000)
# It asks 1,500 times, on few connections.
LIMITS = Limits(web=WebLimits(requests=MANY, explanations=MANY, gap_pages=MANY, did_lists_read=MANY))


async def test_schemathesis_finds_no_difference(relay: Relay, start: Start, tmp_path: Path) -> None:
    relay.publish([(seq, identity(seq)) for seq in (1, 2, 3)])
    service = await start(upstream_cursor=0, zstd_dictionary="none", ready_lag=None, limits=LIMITS)
    await published(service, 3)
    schemathesis = Path(sys.executable).with_name("schemathesis")
    process = await create_subprocess_exec(
        *(schemathesis, "--config-file", CONFIGURATION, "run"),
        *(f"http://127.0.0.1:{service.port}/openapi.json", "--seed", "1", "--max-examples", "5"),
        *("--phases", "examples,coverage,fuzzing", "--generation-database", "none"),
        *("--request-timeout", "20", "--suppress-health-check", "all", "--no-color"),
        stdout=PIPE,
        stderr=STDOUT,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.openapi.hooks"},
    )
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, out.decode()
    tested = len(await paths(service.port)) - 1  # the document itself is not
    assert f"Tested: {tested}\n" in out.decode(), out.decode()
