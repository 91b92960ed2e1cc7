"""Plain HTTP: the page at `/`, helpful refusals, and responses that any origin may read."""

from __future__ import annotations

import aiohttp
import pytest
from structlog.testing import capture_logs
from tests.serving import Start, get, until
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.settings import parse_networks
from jetstream.web.parameters import WIRE_RULE

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.fixture
async def service(start: Start) -> Service:
    return await start()


@pytest.mark.parametrize("wire", ["classic", "v1"])
async def test_the_page_says_which_client_connects_where(wire: str, start: Start) -> None:
    service = await start(wire=wire)
    base = f"127.0.0.1:{service.port}"
    for accept in ("*/*", "text/html,application/xhtml+xml"):
        status, page = await get(service.port, "/", Accept=accept)
        assert status == 200
        assert ("<!doctype html>" in page) == (accept != "*/*")
        for text in (
            f"ws://{base}/subscribe",
            f"ws://{base}/v1/subscribe",
            f"http://{base}/metrics",
            f"http://{base}/health",
            f"http://{base}/cursors",
            f"http://{base}/events",
            f"events as JSON, {wire} wire; {WIRE_RULE}",
            "@skyware/jetstream",
            "@atcute/jetstream",
            "wantedCollections",
            "requireHello",
            "until",
            "heartbeat",
        ):
            assert text in page


async def test_the_page_escapes_the_host(service: Service) -> None:
    status, page = await get(service.port, "/", Accept="text/html", Host="<script>alert(1)</script>")
    assert status in {200, 400}
    assert "<script>alert" not in page


@pytest.mark.parametrize("path", ["/subscribe", "/v1/subscribe"])
async def test_a_plain_get_is_answered_that_this_is_a_websocket(path: str, service: Service) -> None:
    status, text = await get(service.port, path)
    url = f"ws://127.0.0.1:{service.port}{path}"
    http = f"http://127.0.0.1:{service.port}/events"
    wire = {"/subscribe": "classic", "/v1/subscribe": "v1"}[path]
    rule = f"it sends the {wire} wire, but {WIRE_RULE}"
    assert (status, text) == (426, f"{path} is a WebSocket: connect to {url}, or read {http}; {rule}\n")


async def test_urls_are_shown_as_a_trusted_proxy_serves_them(start: Start) -> None:
    fields = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "jetstream.example"}
    service = await start(trusted_proxies=parse_networks("127.0.0.1"))
    _, page = await get(service.port, "/", **fields)
    assert "wss://jetstream.example/subscribe" in page
    assert "https://jetstream.example/health" in page
    _, text = await get(service.port, "/subscribe", **fields)
    here = "wss://jetstream.example/subscribe, or read https://jetstream.example/events"
    assert text.startswith(f"/subscribe is a WebSocket: connect to {here};")


async def test_others_do_not_choose_the_urls(service: Service) -> None:
    _, page = await get(service.port, "/", **{"X-Forwarded-Host": "evil.example"})
    assert "evil.example" not in page


async def test_the_log_names_the_client_behind_a_trusted_proxy(start: Start) -> None:
    service = await start(trusted_proxies=parse_networks("127.0.0.0/8"))
    fields = {"X-Forwarded-For": "198.51.100.1, 203.0.113.9"}
    with capture_logs() as logs:
        async with subscribe(service.port, headers=fields) as client:
            await client.say("no JSON")
            await until(lambda: len(service.subscribe) == 0)
    assert [line["peer"] for line in logs if line["event"] == "subscriber: cut, bad_json"] == ["203.0.113.9"]


async def test_an_unknown_version_of_the_protocol_is_refused(service: Service) -> None:
    status, _ = await get(service.port, "/subscribe", **(HANDSHAKE | {"Sec-WebSocket-Version": "99"}))
    assert status == 426


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/health", 200),
        ("GET", "/metrics", 200),
        ("GET", "/status.json", 200),
        ("GET", "/cursors", 200),
        ("HEAD", "/cursors/", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/favicon.ico", 200),
        ("GET", "/page/main.js", 200),
        ("HEAD", "/page/page.css", 200),
        ("GET", "/page/nothing", 404),
        ("POST", "/page/main.js", 405),
        ("GET", "/subscribe", 426),
        ("GET", "/subscribe?cursor=x", 400),
        ("GET", "/v1/subscribe?compress=1", 400),
        ("GET", "/v1/subscribe?compress=true", 426),
        ("GET", "/subscribe/", 426),
        ("GET", "/health/", 200),
        ("OPTIONS", "/", 200),
        ("OPTIONS", "/subscribe", 200),
        ("OPTIONS", "/nothing", 404),
        ("POST", "/subscribe", 405),
        ("GET", "/nothing", 404),
    ],
)
async def test_any_origin_may_read_every_response(
    method: str, path: str, status: int, service: Service
) -> None:
    url = f"http://127.0.0.1:{service.port}{path}"
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers={"Origin": "https://example.com"}) as response,
    ):
        assert response.status == status
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["Access-Control-Expose-Headers"] == "*"


async def test_a_browser_that_asks_first_may_send_any_header(service: Service) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.options(f"http://127.0.0.1:{service.port}/health") as response,
    ):
        assert await response.read() == b""
        assert response.headers["Access-Control-Allow-Methods"] == "GET, HEAD"
        assert response.headers["Access-Control-Allow-Headers"] == "*, Authorization"


async def test_what_is_not_there_is_answered_with_what_is(service: Service) -> None:
    _, text = await get(service.port, "/nothing")
    pages = "/, /cursors, /events, /explain, /favicon.ico, /filters, /gaps, /health, /metrics, /openapi.json"
    some = "/page/, /ready, /status.json, /subscribe, /subscribers.json, /subscribers/kick"
    others = f"{some}, /v1/subscribe, /xrpc/, /zstd-dictionary"
    assert text == f"there is nothing here: there are {pages}, {others}\n"


@pytest.mark.parametrize("path", ["/subscribe/", "/v1/subscribe/", "/subscribe//"])
async def test_a_slash_at_the_end_of_a_path_does_not_matter(path: str, service: Service) -> None:
    async with subscribe(service.port, path):
        await until(lambda: len(service.delivery) == 1)


async def test_any_origin_may_subscribe(service: Service) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"http://127.0.0.1:{service.port}/subscribe", origin="https://example.com"
        ) as socket,
    ):
        assert not socket.closed


@pytest.mark.parametrize("value", ["%ff", "%ed%a0%80", "%00", "%F0%9F%92%A9", "%E2%80%AE", "%"])
async def test_a_value_that_is_not_text_is_refused_like_any_other(value: str, service: Service) -> None:
    for name in ("cursor", "wantedDids", "wantedCollections", "maxMessageSizeBytes", "requireHello"):
        status, text = await get(service.port, f"/subscribe?{name}={value}", **HANDSHAKE)
        assert (status, text.startswith(f"{name}: '")) == (400, True)
        assert text.rstrip("\n").isprintable()
