"""Refused subscriptions: each is counted by its reason, and logged at most once a minute for each reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.serving import Start, figures, get, until

from jetstream.metrics import REFUSAL_REASONS

V2 = "/xrpc/network.bsky.jetstream.subscribeEvents"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
NOWHERE = "http://127.0.0.1:9/dictionary"  # nothing listens on the port to discard
# Of each reason: a request with its header fields, and the settings of the server.
REFUSED: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "parameter": ("/subscribe?cursor=x", UPGRADE, {}),
    "cursor_too_old": (f"{V2}?cursor=5", UPGRADE, {}),
    "unknown_dictionary": (f"{V2}?zstdDictionary=7", UPGRADE, {}),
    "no_dictionary": ("/v1/subscribe?compress=true", UPGRADE, {"zstd_dictionary_url": NOWHERE}),
    "transport": ("/subscribe", {}, {}),
    "coding": ("/events", {"Accept-Encoding": "br, identity;q=0"}, {}),
    "full": ("/subscribe", UPGRADE, {"max_subscribers": 0}),
    "unauthorized": ("/subscribers.json", {"Origin": "https://example.com"}, {}),
    "handshake": ("/subscribe", UPGRADE | {"Sec-WebSocket-Key": "short"}, {}),
}


@pytest.fixture(autouse=True)
def _no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip, which is the second source of the dictionary, find no package."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")


# Limits per address are in `test_address_limits`, a log that cannot be read is in `test_roles`.
ELSEWHERE = {each for each in REFUSAL_REASONS if each.startswith("address_")} | {"log_unreadable"}


@pytest.mark.parametrize("reason", [each for each in REFUSAL_REASONS if each not in ELSEWHERE])
async def test_a_refusal_is_counted_by_its_reason(reason: str, start: Start) -> None:
    path, headers, settings = REFUSED[reason]
    service = await start(**settings)
    with capture_logs() as logs:
        status, text = await get(service.port, path, **headers)
        for _ in range(4):
            await get(service.port, path, **headers)
    assert 400 <= status < 600
    assert text
    counts = dict.fromkeys(REFUSAL_REASONS, 0.0) | {reason: 5.0}
    seen = await figures(service.port)
    assert {each: seen[f'jetstream_refused_total{{reason="{each}"}}'] for each in counts} == counts
    lines = Counter(
        line["event"] for line in logs if "refused" in line["event"] or "not served" in line["event"]
    )
    events = {
        "handshake": "request: not served, handshake",
        "unauthorized": "request: refused, unauthorized",
    }
    event = events.get(reason, f"subscription: refused, {reason}")
    assert lines == {event: 1}


async def test_the_line_has_the_sentence_and_an_example(start: Start) -> None:
    service = await start()
    with capture_logs() as logs:
        await get(service.port, "/subscribe?wantedDids=bob", **UPGRADE)
    [line] = [line for line in logs if line["event"] == "subscription: refused, parameter"]
    assert line["problem"] == "wantedDids: 'bob' is not a DID, such as did:plc:…"
    assert (line["example"], line["peer"]) == ("/subscribe?wantedDids=bob", "127.0.0.1")


async def test_a_burst_is_told_when_the_server_stops_at_the_latest(start: Start) -> None:
    service = await start()
    with capture_logs() as logs:
        for number in range(3):
            await get(service.port, f"/subscribe?wantedDids=bob{number}", **UPGRADE)
        service.stop()
        await until(lambda: logs[-1]["event"] == "stopped")
    told = [line for line in logs if line["event"] == "subscription: refused, parameter"]
    assert [(line["example"], line.get("omitted")) for line in told] == [
        ("/subscribe?wantedDids=bob0", None),
        ("/subscribe?wantedDids=bob2", 1),
    ]
