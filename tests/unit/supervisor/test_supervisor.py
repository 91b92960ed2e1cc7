"""The supervisor with small real processes, which only say that they are ready."""

from __future__ import annotations

from pathlib import Path

from structlog.testing import capture_logs
from tests.serving import LOOPBACK, running, until
from tests.unit.supervisor.test_process import READY, UNTIL_STOP
from tests.unit.supervisor.test_view import snapshot

from jetstream.limits import Limits, SupervisorLimits
from jetstream.settings import Settings
from jetstream.supervisor.supervisor import Supervisor

OFTEN = Limits(supervisor=SupervisorLimits(hang_s=0.01, looks=5, gather_every_s=0.002, snapshot_s=0.001))
COMMAND = ("-I", "-S", "-c", UNTIL_STOP)


class Faulty(Supervisor):
    """Fails twice when it looks after its processes."""

    looks = gathered = 0

    def _look(self) -> None:
        self.looks += 1
        if self.looks == 2:
            raise ValueError("wrong")

    async def _gather(self) -> None:
        self.gathered += 1
        if self.gathered == 2:
            raise KeyError("families")
        await super()._gather()


async def test_an_error_while_processes_are_looked_after_does_not_end_the_server(tmp_path: Path) -> None:
    settings = Settings(listen=LOOPBACK, data_dir=tmp_path, edges=1)
    with capture_logs() as logs:
        async with running(Faulty(settings, OFTEN, command=COMMAND)) as server:
            await until(lambda: server.looks > 3 and server.gathered > 3)
            assert server.view._own_figures.failures == 2
    assert "supervisor: an error, it goes on" in {line["event"] for line in logs}
    assert [each.ends["died"] for each in (server.ingest, *server.edges)] == [0, 0]


WRONG = ["jetstream_messages_sent", "counter", "Messages", [["x", {"wire": "v1"}, "many"]]]
FIGURES = snapshot() | {"families": [WRONG]}
ANSWERING = f"""{READY}
kind = "ready"
while kind not in ("stop", ""):
    kind, number = hear()
    if kind == "snapshot":
        tell("answer", number, **{FIGURES!r})
"""


async def test_what_cannot_be_counted_of_a_process_that_has_ended_does_not_end_the_server(
    tmp_path: Path,
) -> None:
    quick = SupervisorLimits(
        gather_every_s=0.005, view_kept_s=0.0, backoff_first_s=0.001, backoff_max_s=0.001
    )
    settings = Settings(listen=LOOPBACK, data_dir=tmp_path, edges=2)
    command = ("-I", "-S", "-c", ANSWERING)
    with capture_logs() as logs:
        async with running(Supervisor(settings, Limits(supervisor=quick), command=command)) as server:
            view, (edge, other) = server.view, server.edges
            await until(lambda: len(view._of_edges()) == 2)
            first = edge.pid
            edge.kill()
            await until(lambda: edge.pid != first and edge.is_ready.is_set())
            assert (view._own_figures.failures, edge.ends["died"], other.ends["died"]) == (1, 1, 0)
            await until(lambda: len(view._of_edges()) == 2)
    lost = "supervisor: the counters of a process that has ended are lost"
    assert lost in [line["event"] for line in logs]
