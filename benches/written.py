"""What a quiet server takes: bytes written to disk and CPU time for each event, without a subscriber.

python -m benches.written [RATE] [SECONDS]

The bytes are those that the kernel counts for the process, from the first event to the end of the process.
So all that is written later because of these events is counted too: checkpoints, segments, and what closing
the log writes. The time includes all that a server does now and then, with an event or without.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Final

from benches.limits import Limit, number
from benches.relay_process import RelayProcess
from benches.stand import Server, settle, stand

TITLE: Final = "Bytes written and CPU time for each event, without a subscriber, at {} events/s"
SETTLE_S: Final = 3.0
SECONDS: Final = {50: 160.0, 500: 64.0}  # two segments at 50 events/s, eight at 500
LIMITS: Final = {
    50: (Limit("written_bytes", 5_000), Limit("cpu_ms", 0.4)),
    500: (Limit("written_bytes", 2_000),),
}
_BLOCK_BYTES: Final = 512  # of `ru_oublock`, on Linux


def main(rate: float, seconds: float | None = None) -> dict[str, float]:
    """Run once. Return figures for each event, and the CPU time a second."""
    with stand() as (relay, server):
        settle(SETTLE_S)
        written_before = _written_bytes(server.pid)
        figures = _measure(relay, server, rate, seconds or SECONDS[int(rate)])
    written = resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock * _BLOCK_BYTES - written_before
    figures = {"written_bytes": written / figures["events"], **figures}
    print(f"written: {', '.join(f'{name} {number(value)}' for name, value in figures.items())}", flush=True)
    return figures


def _measure(relay: RelayProcess, server: Server, rate: float, seconds: float) -> dict[str, float]:
    cpu_s = server.cpu_s()
    relay.begin(rate=rate, seconds=seconds)
    sent = relay.wait_sent()
    cpu_s = server.cpu_s() - cpu_s
    return {
        "cpu_ms": cpu_s / sent.events * 1e3,
        "cpu_ms_per_s": cpu_s / sent.seconds * 1e3,
        "events": sent.events,
    }


def _written_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes:")).split()[1])


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
