"""What `/metrics` says of the processes of a server, and of the connections that are passed to them.

Only the supervisor knows these. They are merged with the families of its children by `families`, and
the names of both are described in docs/metrics.md. All values are read when `/metrics` is asked for,
and none is counted here but `failures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jetstream.supervisor.acceptor import Acceptor
from jetstream.supervisor.process import Process


class OwnFigures(Collector):
    """The families of the supervisor.

    The label `process` has the names of places, such as `edge-2`: their number is fixed by `--edges`. A
    figure with this label goes on when a process is replaced.
    """

    def __init__(self, processes: Sequence[Process], acceptor: Acceptor) -> None:
        # All places, the ingest first. Their processes change, these objects do not.
        self._processes = processes
        self._acceptor = acceptor
        # Errors of the supervisor itself, so far. `View.note_failure` counts them.
        self.failures = 0

    def collect(self) -> Iterator[Metric]:
        """Return the families as of now."""
        ready = GaugeMetricFamily(
            "jetstream_process_ready", "1 while a process is ready.", labels=["process"]
        )
        ends = CounterMetricFamily(
            "jetstream_process_ends", "Processes that ended and were replaced.", labels=["process", "cause"]
        )
        for each in self._processes:
            ready.add_metric([str(each.place)], float(each.is_ready.is_set()))
            for cause, count in each.ends.items():
                ends.add_metric([str(each.place), cause], count)
        # One more value of the label of a family that every process has.
        errors = CounterMetricFamily(
            "jetstream_internal_errors", "Errors of the server itself", labels=["doing"]
        )
        errors.add_metric(["supervise"], self.failures)
        yield from (ready, ends, errors)
        yield from self._connections()

    def _connections(self) -> Iterator[Metric]:
        """Return the families of connections: of each edge, and of those that wait for one.

        The count of an edge is what it said last and what is on the way to it, so it is some hundredths
        of a second old.
        """
        loads, passed = self._acceptor.loads, self._acceptor.passed
        opened = GaugeMetricFamily(
            "jetstream_process_connections", "Connections of an edge.", labels=["process"]
        )
        total = CounterMetricFamily(
            "jetstream_connections_passed", "Connections that were passed to an edge.", labels=["process"]
        )
        for number, load in loads.items():
            opened.add_metric([f"edge-{number}"], load.total)
            total.add_metric([f"edge-{number}"], passed[number])
        yield from (opened, total)
        yield GaugeMetricFamily(
            "jetstream_connections_waiting", "Connections that no edge can have yet.", self._acceptor.waiting
        )
        yield CounterMetricFamily(
            "jetstream_connections_passed_again",
            "Connections that an edge had not taken when it ended.",
            self._acceptor.passed_again,
        )
