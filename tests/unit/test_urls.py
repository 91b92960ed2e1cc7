from __future__ import annotations

import pytest

from jetstream.urls import shown, without_secrets

HIDDEN = "hunter2"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("wss://bsky.network/xrpc/a.b", "wss://bsky.network/xrpc/a.b"),
        ("ws://127.0.0.1:2470/xrpc/a.b", "ws://127.0.0.1:2470/xrpc/a.b"),
        ("ws://[::1]:2470/x", "ws://[::1]:2470/x"),
        ("wss://me:hunter2@relay.example/x", "wss://relay.example/x"),
        ("wss://hunter2@relay.example:8443/x", "wss://relay.example:8443/x"),
        ("wss://relay.example/x?token=hunter2", "wss://relay.example/x"),
        ("wss://relay.example?token=hunter2", "wss://relay.example"),
        ("wss://relay.example/x#hunter2", "wss://relay.example/x"),
        ("ws://me:h%75nter2@relay.example/x?a=hunter2&b=1", "ws://relay.example/x"),
        ("me:hunter2@relay.example", "relay.example"),
        ("relay.example", "relay.example"),
        # What is no URL, or looks like another than was meant.
        ("wss://me:hunter2/x@relay.example/x", "wss://relay.example/x"),
        ("wss://me:hunter2?x@relay.example/x", "wss://…"),
        ("wss://relay.example/x?token=a@hunter2", "wss://…"),
        ("a://b://me:hunter2@relay.example", "relay.example"),
        ("wss://me:1/hunter2@relay.example/x", "wss://relay.example/x"),
        ("wss://me:hunter2[@relay.example/x", "wss://relay.example/x"),
        ("wss://me:hunter2@x@relay.example/x", "wss://relay.example/x"),
        ("wss://me: hunter2@relay.example", "wss://relay.example"),
        ("wss://me:hunter2@relay.example:99999/x", "wss://relay.example:99999/x"),
        ("me:hunter2@", ""),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_secrets(url: str, expected: str) -> None:
    assert shown(url) == expected
    assert HIDDEN not in shown(url)


def test_every_url_in_a_sentence_is() -> None:
    text = "cannot follow redirect to ws://a:hunter2@b/c?d=hunter2 from wss://e/f?g=hunter2, sorry"

    assert without_secrets(text) == "cannot follow redirect to ws://b/c from wss://e/f sorry"
    assert without_secrets("no URL: at all") == "no URL: at all"
