from __future__ import annotations

from typing import Any

import pytest

from jetstream.settings import Address, Settings
from jetstream.web.listening import urls


@pytest.mark.parametrize(
    ("listen", "given", "expected"),
    [
        (Address("", 0), {"tls": False}, ("ws://localhost:7000/subscribe", "http://localhost:7000/metrics")),
        (Address("::1", 0), {"tls": False}, ("ws://[::1]:7000/subscribe", "http://[::1]:7000/metrics")),
        (
            Address("10.0.0.1", 0),
            {"tls": True},
            ("wss://10.0.0.1:7000/subscribe", "https://10.0.0.1:7000/metrics"),
        ),
    ],
)
def test_urls_can_be_copied(listen: Address, given: dict[str, Any], expected: tuple[str, str]) -> None:
    found = urls(Settings(listen=listen), 7000, **given)
    assert (found["subscribe"], found["metrics"]) == expected


def test_a_server_without_subscribers_shows_its_page() -> None:
    found = urls(
        Settings(listen=Address("::", 0), metrics_listen=Address("::1", 9)), 7000, tls=True, serves=False
    )
    assert found == {"page": "https://[::]:7000/", "metrics": "http://[::1]:9/metrics"}
