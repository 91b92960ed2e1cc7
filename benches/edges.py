"""What edges cost the ingest, and what it costs to pass a connection to an edge.

python -m benches.edges [--edges 1,2,4,8] [--readers 25] [--rate 500] [--seconds 10]

Each server is `jetstream serve --edges N` with a relay. The ingest's CPU time for an event is measured
without a subscriber, and with some at each edge that want everything. An edge that costs the ingest nothing
leaves that figure as it is. On a machine with fewer cores than processes, all take something from each other.
"""

from __future__ import annotations

import json
import select
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

from benches.handshake import opened
from benches.stand import Server, settle, stand
from cyclopts import App, Parameter

TITLE: Final = "CPU time of the ingest for an event, with so many edges"
SETTLE_S: Final = 2.0
CONNECTIONS: Final = 2_000
_READ_BYTES: Final = 1 << 20

app = App(name="edges", help=TITLE)


@app.default
def main(
    *,
    edges: Annotated[str, Parameter(help="Numbers of edges, with commas between them.")] = "1,2,4,8",
    readers: Annotated[int, Parameter(help="Subscribers of each edge.")] = 25,
    rate: Annotated[float, Parameter(help="Events a second.")] = 500.0,
    seconds: Annotated[float, Parameter(help="To measure.")] = 10.0,
) -> dict[str, float]:
    """Run all. Return microseconds of CPU for an event and for a passed connection."""
    figures: dict[str, float] = {}
    for count in map(int, edges.split(",")):
        found = measure(count, readers, rate, seconds)
        print(
            f"edges {count}: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()), flush=True
        )
        figures |= {f"{name}_{count}": value for name, value in found.items()}
    return figures


def measure(edges: int, readers: int, rate: float, seconds: float) -> dict[str, float]:
    """Run one server. Return its figures: the first two are of the ingest, with and without readers."""
    events = int(rate * seconds)
    with stand("--edges", str(edges), "--address-connections", "none") as (relay, server):
        settle(SETTLE_S)
        processes = pids(server)
        figures = {}
        for name, subscribers in (("idle_us", 0), ("read_us", edges * readers)):
            with reading(server, subscribers):
                settle(SETTLE_S)
                before = {process: cpu_s(pid) for process, pid in processes.items()}
                relay.begin(rate=rate, events=events)
                sent = relay.wait_sent()
                settle()
                used = {process: cpu_s(pid) - before[process] for process, pid in processes.items()}
            figures[name] = used["ingest"] / sent.events * 1e6
            of_edges = [each for process, each in used.items() if process.startswith("edge")]
            figures[f"edge_{name}"] = sum(of_edges) / edges / sent.events * 1e6
        figures["passed_us"] = passing_us(server)
    return figures


def passing_us(server: Server) -> float:
    """Return the CPU time of the supervisor for a connection that it passes to an edge."""
    with ExitStack() as connections:
        before = cpu_s(server.pid)
        for connection in opened(server, CONNECTIONS):
            connections.enter_context(connection)
        return (cpu_s(server.pid) - before) / CONNECTIONS * 1e6


def pids(server: Server) -> dict[str, int]:
    """Return the processes of a server by their names."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/status.json") as response:
        status: dict[str, Any] = json.load(response)
    return {each["name"]: each["pid"] for each in status["processes"]}


def cpu_s(pid: int) -> float:
    """Return the seconds for which the threads of a process were on a core, in nanoseconds."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


@contextmanager
def reading(server: Server, count: int) -> Iterator[None]:
    """Subscribe so often, and read whatever comes, in a thread."""
    with ExitStack() as connections:
        sockets = [connections.enter_context(each) for each in opened(server, count)]
        ended = threading.Event()
        poll = select.epoll()
        for each in sockets:
            each.setblocking(False)
            poll.register(each.fileno(), select.EPOLLIN)
        by_file = {each.fileno(): each for each in sockets}

        def read() -> None:
            while not ended.is_set():
                for file, _ in poll.poll(0.1):
                    by_file[file].recv(_READ_BYTES)
                time.sleep(0.005)  # many at once: the reader is not what is measured

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            poll.close()


if __name__ == "__main__":
    app()
