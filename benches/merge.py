"""What further relays cost: one relay, then three that send the same commits, with everything verified.

python -m benches.merge [EVENTS]

Each relay sends at the same rate, with numbers of its own. Each begins 50 ms after the one before it, so that
nearly all of its messages are repeats of what is stored.
"""

from __future__ import annotations

import sys
import time
from typing import Final

from benches.ingest import reading
from benches.limits import Limit
from benches.signed import verifying
from benches.verdicts import check_verdicts

TITLE: Final = "CPU of three relays that send the same 1,000 commits/s over that of one, with `--verify full`"
LIMITS: Final = (Limit("cpu_ratio", 1.15),)
EVENTS: Final = 30_000
RATE: Final = 1_000.0
RELAYS: Final = 3
APART_S: Final = 0.05


def main(events: int = EVENTS) -> dict[str, float]:
    """Measure one relay, then three. Return the server's CPU time for each event, and their ratio."""
    one, three = _cpu_us(1, events), _cpu_us(RELAYS, events)
    figures = {"cpu_ratio": three / one, "cpu_us_per_event": three, "cpu_us_per_event_one": one}
    print(f"merge3: {one:.1f} µs of server CPU an event from one relay, {three:.1f} from three", flush=True)
    return figures


def _cpu_us(relays: int, events: int) -> float:
    """Return the server's CPU time for each event, in microseconds."""
    with verifying(relays) as (sources, server), reading(server, events) as seen:
        cpu_s = server.cpu_s()
        for relay in sources:
            relay.begin(rate=RATE, events=events)
            time.sleep(APART_S)
        sent = max(relay.wait_sent().events for relay in sources)
        count, _ = seen()
        time.sleep(APART_S)  # for the last repeats
        cpu_s = server.cpu_s() - cpu_s
        check_verdicts(server)
    if count > sent:
        raise RuntimeError(f"the subscriber saw {count} events of {sent}")
    return cpu_s / count * 1e6


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
