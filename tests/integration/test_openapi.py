"""`/openapi.json` against a running server. In tests/foreign, schemathesis compares more of the two."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from tests.builders import identity
from tests.relay import Relay
from tests.serving import LOOPBACK, Start, get, published
from tests.subscriber import subscribe

from jetstream.web.methods import METHODS, PREFIX, SUBSCRIBE_EVENTS

EVENTS = f"{PREFIX}{SUBSCRIBE_EVENTS}"


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
