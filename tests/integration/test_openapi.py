"""`/openapi.json` against a running server: schemathesis asks what it describes, and judges the answers."""

from __future__ import annotations

import json
import os
import re
import sys
from asyncio import create_subprocess_exec
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.builders import identity
from tests.relay import Relay
from tests.serving import LOOPBACK, Start, get, published
from tests.subscriber import subscribe

from jetstream.limits import Limits, WebLimits
from jetstream.token_bucket import Rate
from jetstream.web.methods import METHODS, PREFIX, SUBSCRIBE_EVENTS

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = ROOT / "tests" / "openapi" / "schemathesis.toml"
EVENTS = f"{PREFIX}{SUBSCRIBE_EVENTS}"
MANY = Rate(1e6, 1_000_000)
# It asks 1,500 times, on few connections.
LIMITS = Limits(web=WebLimits(requests=MANY, explanations=MANY, gap_pages=MANY, did_lists_read=MANY))


async def paths(port: int) -> dict[str, Any]:
    """Return the paths of the document."""
    status, text = await get(port, "/openapi.json")
    assert status == 200
    found: dict[str, Any] = json.loads(text)["paths"]
    return found


async def routes(port: int) -> set[str]:
    """Return the paths that a server says it has, and what is below `/xrpc/` and `/page/`."""
    status, text = await get(port, "/nothing")
    assert status == 404
    found = set(re.findall(r"(/\S*?)(?:,|$)", text, re.MULTILINE))
    assert found > {PREFIX, "/page/"}
    return found - {PREFIX, "/page/"} | {PREFIX + nsid for nsid in METHODS} | {"/page/{file}"}


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


async def test_the_document_has_every_route(start: Start) -> None:
    service = await start()
    assert set(await paths(service.port)) == await routes(service.port)


async def test_metrics_of_another_address_are_not_in_it(start: Start) -> None:
    service = await start(metrics_listen=LOOPBACK)
    found = set(await paths(service.port))
    assert "/metrics" not in found
    assert found == await routes(service.port)


@pytest.mark.parametrize("wire", ["classic", "v1"])
async def test_it_names_the_wire_of_subscribe(wire: str, start: Start) -> None:
    service = await start(wire=wire)
    found = await paths(service.port)
    assert f"in the {wire} wire" in found["/subscribe"]["get"]["summary"]


@pytest.mark.parametrize("path", ["/subscribe", "/v1/subscribe", EVENTS])
async def test_an_upgrade_has_the_header_fields_of_the_document(
    path: str, relay: Relay, start: Start
) -> None:
    relay.publish([(1, identity(1))])
    service = await start(upstream_cursor=0)
    await published(service, 1)
    documented: Mapping[str, Any] = (await paths(service.port))[path]["get"]["responses"]["101"]["headers"]
    async with subscribe(service.port, path) as subscriber:
        assert subscriber.connection.response is not None
        sent = {name.lower() for name in subscriber.connection.response.headers}
    assert sent - {"connection"} == {name.lower() for name in documented} - {"sec-websocket-protocol"}
