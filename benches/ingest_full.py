"""The whole path with everything verified, in the server's process and in one and two others.

python -m benches.ingest_full [EVENTS]

The server has the keys of all accounts, so no commit waits for one. Two worker processes can do twice the
work of one only where each has a core, beside the server, the relay and the reader: `CORES` in all. On fewer
cores `workers_ratio` is measured and has no target.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from benches.ingest import measure
from benches.limits import Limit
from benches.signed import COUNT, verifying
from benches.verdicts import check_verdicts

TITLE: Final = "From a relay's socket to a committed log and one reader, with `--verify full`"
CORES: Final = 5
_SPEED: Final = Limit("events_per_s", 7_500, least=True)
_RATIO: Final = Limit("workers_ratio", 1.7, least=True)
LIMITS: Final = (_SPEED, _RATIO) if len(os.sched_getaffinity(0)) >= CORES else (_SPEED,)


def main(events: int = COUNT) -> dict[str, float]:
    """Run once without worker processes, then with one and with two. Return all figures."""
    figures = _run(0, events)
    one, two = _run(1, events), _run(2, events)
    figures["workers_ratio"] = two["events_per_s"] / one["events_per_s"]
    for count, found in ((1, one), (2, two)):
        figures |= {f"{name}_workers{count}": found[name] for name in ("events_per_s", "cpu_us_per_event")}
    return figures


def _run(workers: int, events: int) -> dict[str, float]:
    with verifying(1, "--verify-workers", str(workers)) as ((relay,), server):
        figures = measure(relay, server, events)
        check_verdicts(server)
    print(
        f"ingest_full: {figures['events_per_s']:>10,.0f} events/s with {workers} workers, "
        f"{figures['cpu_us_per_event']:.1f} µs of the server's own CPU an event, "
        f"{figures['cores']:.2f} cores",
        flush=True,
    )
    return figures


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
