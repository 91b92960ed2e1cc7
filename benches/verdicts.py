"""What a server that verifies has judged, from its metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.request import urlopen

from benches.stand import Server

_NAME: Final = "jetstream_verify_total{"
_GOOD: Final = ('verdict="ok"', 'verdict="replay"')


def check_verdicts(server: Server) -> None:
    """Raise RuntimeError if any message was judged to be anything but good, or a repeat."""
    counted = (line for line in _verdicts(server) if not line.endswith(" 0.0"))
    bad = [line for line in counted if not any(map(line.count, _GOOD))]
    if bad:
        raise RuntimeError("messages were judged to be: " + ", ".join(bad))


def _verdicts(server: Server) -> Iterator[str]:
    with urlopen(f"http://127.0.0.1:{server.port}/metrics") as response:
        yield from (line for line in response.read().decode().splitlines() if line.startswith(_NAME))
