"""The supervisor with small real processes, which only say that they are ready."""

from __future__ import annotations

from pathlib import Path

from structlog.testing import capture_logs
from tests.serving import LOOPBACK, running, until
from tests.unit.supervisor.test_process import UNTIL_STOP

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
