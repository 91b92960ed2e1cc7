"""What events cost a server that has little to do: bytes written to disk, and CPU time.

python -m benches.written [RATE] [SECONDS]

Once without a subscriber, and once with one that wants everything. The bytes are those that the kernel counts
for the process, from the first event to its end. So all that is written later because of these events is
counted too: checkpoints, segments, and what closing the log writes. The time is that of the whole process, so
it includes what is done every second, with an event or without.
"""

from __future__ import annotations

import resource
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benches.ingest import reading
from benches.limits import Limit, number
from benches.stand import settle, stand

TITLE: Final = "Bytes written and CPU time for each event at {} events/s, without a subscriber, and with one"
SETTLE_S: Final = 3.0
SECONDS: Final = {50: 80.0, 500: 16.0}  # one segment, and two
_BYTES, _CPU_MS = "written_bytes", "cpu_ms"
LIMITS: Final = {
    50: (Limit(_BYTES, 5_000), Limit(_CPU_MS, 0.4), Limit(f"{_BYTES}_read", 5_000)),
    500: (Limit(_BYTES, 2_000), Limit(f"{_BYTES}_read", 2_000)),
}
_BLOCK_BYTES: Final = 512  # of `ru_oublock`, on Linux


def main(rate: float, seconds: float | None = None) -> dict[str, float]:
    """Run both. Return figures for each event; those with a subscriber end in `_read`."""
    seconds = seconds or SECONDS[int(rate)]
    alone = _measure(rate, seconds, subscribed=False)
    read = _measure(rate, seconds, subscribed=True)
    figures = alone | {f"{name}_read": value for name, value in read.items()}
    print(f"written{rate:g}: {', '.join(f'{name} {number(value)}' for name, value in figures.items())}")
    return figures


def _measure(rate: float, seconds: float, *, subscribed: bool) -> dict[str, float]:
    """Start a server, and send events for some seconds. Everything that has ended before is not counted."""
    events, ended_bytes = int(rate * seconds), _ended_written_bytes()
    with stand() as (relay, server), ExitStack() as subscriber:
        seen = subscriber.enter_context(reading(server, events)) if subscribed else None
        settle(SETTLE_S)
        before_bytes, cpu_s = _written_bytes(server.pid), server.cpu_s()
        relay.begin(rate=rate, events=events)
        sent = relay.wait_sent()
        cpu_s = server.cpu_s() - cpu_s
        if seen is not None:
            seen()
    written = _ended_written_bytes() - ended_bytes - before_bytes
    return {_BYTES: written / sent.events, _CPU_MS: cpu_s / sent.events * 1e3}


def _ended_written_bytes() -> int:
    """Return how many bytes the processes have written that were started here and have ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock * _BLOCK_BYTES


def _written_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes:")).split()[1])


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
