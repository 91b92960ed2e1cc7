"""Bearer tokens: what is protected by which, how it is refused, and that no token is ever logged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs
from tests.serving import LOOPBACK, Start, get, running
from tests.subscriber import subscribe
from websockets.exceptions import InvalidStatus

from jetstream.app import Service
from jetstream.errors import SettingError
from jetstream.settings import Settings, parse_networks

V2 = "/xrpc/network.bsky.jetstream.subscribeEvents"
ALICE, OPERATOR = "alice-alice-alice-alice", "operator-operator-operator"
EVENTS = ("/subscribe", "/v1/subscribe", V2, "/events?limit=1&cursor=0&until=1", "/explain", "/gaps")
FIGURES = ("/metrics", "/status.json", "/subscribers.json")
OPEN = ("/", "/health", "/ready", "/cursors", "/openapi.json", "/zstd-dictionary")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Write a file of tokens for each kind of client."""
    made = {"subscriber_tokens": tmp_path / "subscribers", "operator_tokens": tmp_path / "operators"}
    made["subscriber_tokens"].write_text(f"alice:{ALICE}\n")
    made["operator_tokens"].write_text(f"me:{OPERATOR}\n")
    return made


@pytest.fixture
async def service(start: Start, files: dict[str, Any]) -> AsyncIterator[Service]:
    """Start a server with both, and see that it logs no token."""
    with capture_logs() as logs:
        yield await start(**files)
    text = json.dumps(logs, default=str)
    assert ALICE not in text
    assert OPERATOR not in text


async def answer(service: Service, path: str, **fields: str) -> aiohttp.ClientResponse:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{service.port}{path}", headers=fields) as response,
    ):
        await response.read()
        return response


async def test_a_token_is_needed_for_events(service: Service) -> None:
    for path in EVENTS:
        await needs_a_token(path, service)
    assert service.metrics.refusals["unauthorized"]._value.get() == 3 * len(EVENTS)


async def needs_a_token(path: str, service: Service) -> None:
    for fields, challenge in (
        ({}, "Bearer"),
        (bearer("unknown-unknown-unknown"), 'Bearer error="invalid_token"'),
        ({"Authorization": f"Basic {ALICE}"}, 'Bearer error="invalid_token"'),
    ):
        response = await answer(service, path, **fields)
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, challenge)
        text = await response.text()
        if path == V2:
            assert json.loads(text)["error"] == "AuthRequired"
        else:
            assert text.startswith((f"{path.partition('?')[0]} needs a token: ", "the token is unknown: "))
    for token in (ALICE, OPERATOR):
        assert (await answer(service, path, **bearer(token))).status not in {401, 403}
        joint = "&" if "?" in path else "?"
        assert (await answer(service, f"{path}{joint}access_token={token}")).status not in {401, 403}


async def test_figures_are_for_operators(service: Service) -> None:
    for path in FIGURES:
        for fields in ({}, bearer(ALICE)):
            assert (await answer(service, path, **fields)).status == 401
        assert (await answer(service, f"{path}?access_token={OPERATOR}")).status == 401
        assert (await answer(service, path, **bearer(OPERATOR))).status == 200


async def test_other_pages_are_open(service: Service) -> None:
    for path in OPEN:
        assert (await answer(service, path)).status in {200, 503}


async def test_subscribers_with_a_token_in_the_header_or_in_the_query(service: Service) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with subscribe(service.port):
            pass
    assert caught.value.response.status_code == 401
    async with subscribe(service.port, headers=bearer(ALICE)), subscribe(service.port, access_token=ALICE):
        assert [client.user for client in service.subscribe.clients()] == ["alice", "alice"]


async def test_a_refusal_does_not_repeat_the_token(service: Service) -> None:
    with capture_logs() as logs:
        for query in ("wantedDids=bob&access_token=", "wantedDids=" + "," * 25_000 + "&access_token="):
            response = await answer(service, f"/events?{query}{ALICE}")
            assert response.status == 400
            assert ALICE not in await response.text()
    assert [line["example"][:40] for line in logs if "example" in line] == ["/events?wantedDids=bob"]
    assert ALICE not in json.dumps(logs, default=str)


async def test_a_body_that_is_not_read_is_not_the_next_request(service: Service) -> None:
    inner = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    for path in ("/subscribe", V2, "/metrics"):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(inner)}\r\n\r\n"
        writer.write(head.encode() + inner)
        answers = await reader.read()
        assert answers.startswith(b"HTTP/1.1 401 ")
        assert answers.count(b"HTTP/1.1 ") == 1
        writer.close()


async def test_a_preflight_needs_no_token(service: Service) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.options(f"http://127.0.0.1:{service.port}/events") as response,
    ):
        assert response.status == 200
        assert "Authorization" in response.headers["Access-Control-Allow-Headers"]


async def test_metrics_of_another_address_need_the_token_too(start: Start, files: dict[str, Path]) -> None:
    service = await start(operator_tokens=files["operator_tokens"], metrics_listen=LOOPBACK)
    assert service.endpoints.metrics_port is not None
    assert (await get(service.endpoints.metrics_port, "/metrics"))[0] == 401
    assert (await get(service.endpoints.metrics_port, "/metrics", **bearer(OPERATOR)))[0] == 200
    assert (await get(service.port, "/gaps"))[0] == 200


async def test_files_are_read_again(service: Service, files: dict[str, Path]) -> None:
    async with subscribe(service.port, headers=bearer(ALICE)) as subscriber:
        files["subscriber_tokens"].write_text("carol:carol-carol-carol\n")
        files["operator_tokens"].write_text("nothing of use\n")
        service.reload()
        assert (await answer(service, "/gaps", **bearer(ALICE))).status == 401
        assert (await answer(service, "/gaps", **bearer("carol-carol-carol"))).status == 200
        assert (await answer(service, "/metrics", **bearer(OPERATOR))).status == 200
        await subscriber.connection.ping()


@pytest.mark.parametrize("setting", ["subscriber_tokens", "operator_tokens"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file"),
        (b"x", "has no name:token"),
        (b"\xff", "is not UTF-8"),
        (b" " * ((1 << 20) + 1), "has more than 1048576 bytes"),
    ],
)
async def test_a_file_that_cannot_be_used_is_named(
    setting: str, content: bytes | None, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_bytes(content)
    given: Any = {setting: file}
    flag = "--" + setting.replace("_", "-")
    with pytest.raises(SettingError, match=rf"^{flag}: .*tokens.* {problem}"):
        async with running(Service(Settings(listen=LOOPBACK, data_dir=tmp_path / "data", **given))):
            pass


# Without tokens


NOT_LOCAL = (
    {"Origin": "https://example.com"},
    {"Origin": "null"},
    {"Host": "rebound.example.com"},
    {"Host": "127.0.0.1.example.com"},
    {"X-Forwarded-For": "127.0.0.1"},
    {"Forwarded": "for=127.0.0.1"},
    {"Via": "1.1 proxy"},
)


async def test_subscribers_are_for_programs_of_this_machine(start: Start) -> None:
    service = await start(trusted_proxies=parse_networks("127.0.0.1"))
    for host in ("localhost:1", "127.0.0.1", "[::1]:6008"):
        assert (await get(service.port, "/subscribers.json", Host=host))[0] == 200
    for fields in NOT_LOCAL:
        status, text = await get(service.port, "/subscribers.json", **fields)
        assert status == 403, fields
        assert text.startswith("/subscribers.json is for programs of this machine, or with --operator-tokens")
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"http://127.0.0.1:{service.port}/subscribers/kick", headers=fields, json={"all": True}
            ) as response,
        ):
            assert response.status == 403, fields
