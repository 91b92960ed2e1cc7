"""The whole path: frames from a local relay to a committed log, with one subscriber reading."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benches.limits import Limit
from benches.relay_process import RelayProcess
from benches.stand import Server, settle, stand

TITLE = "From a relay's socket to a committed log and one reader"
EVENTS = 200_000
LIMITS = (Limit("events_per_s", 50_000, least=True),)


def main(events: int = EVENTS) -> dict[str, float]:
    """Run once. Return events a second, from the first frame sent to the last event read, and CPU time."""
    with stand() as (relay, server):
        figures = measure(relay, server, events)
    print(
        f"ingest: {figures['events_per_s']:>10,.0f} events/s ({LIMITS[0]}), "
        f"{figures['cpu_us_per_event']:.1f} µs of server CPU an event, {figures['cores']:.2f} cores, "
        f"relay {figures['relay_cores']:.2f} cores",
        flush=True,
    )
    return figures


def measure(relay: RelayProcess, server: Server, events: int) -> dict[str, float]:
    """Send at full speed, and wait until the subscriber has received everything."""
    with reading(server, events) as seen:
        cpu_s, began = server.cpu_s(), time.time()
        relay.begin(events=events)
        sent = relay.wait_sent()
        count, at = seen()
        cpu_s = server.cpu_s() - cpu_s
    took_s = at - began
    return {
        "events_per_s": count / took_s,
        "cpu_us_per_event": cpu_s / count * 1e6,
        "cores": cpu_s / took_s,
        "relay_cores": sent.cpu_s / sent.seconds,
    }


@contextmanager
def reading(server: Server, events: int) -> Iterator[Callable[[], tuple[int, float]]]:
    """Start a subscriber. Yield what waits for its events: how many there were, and when the last one came.

    The last frames may contain some more than were ordered. Raises RuntimeError if there are fewer.
    """
    command = [sys.executable, "-m", "benches.counter", "127.0.0.1", str(server.port), str(events)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        output = reader.stdout
        assert output is not None
        output.readline()
        settle()

        def seen() -> tuple[int, float]:
            facts = json.loads(output.readline())
            if facts["events"] < events:
                raise RuntimeError(f"the subscriber saw {facts['events']} of {events} events")
            return facts["events"], facts["at"]

        yield seen


if __name__ == "__main__":
    main()
