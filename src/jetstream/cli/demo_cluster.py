"""`jetstream demo-cluster`: many processes over one log, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from jetstream.errors import SettingError
from jetstream.eventlog.opening import require_driver
from jetstream.runtime import run
from jetstream.upstreams import parse_upstream
from jetstream.urls import shown

Count = Annotated[int, Parameter(validator=Number(gte=1, lte=16))]
_WIDTH = 160  # of a table that is no terminal's


def demo_cluster(
    *,
    upstream: Annotated[list[str] | None, Parameter(negative=(), metavar="URL")] = None,
    edges: Count = 3,
    ingests: Count = 2,
    rate: Annotated[float, Parameter(validator=Number(gt=0))] = 50.0,
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65000))] = 6008,
    dir: Annotated[Path | None, Parameter(metavar="DIRECTORY")] = None,  # noqa: A002 - the flag
    restart: bool = True,
) -> None:
    """Run a cluster on this machine, without containers, until Ctrl-C, to see what its failures cost.

    Parameters
    ----------
    upstream
        Relay or PDS to read: a URL or a host, or name=URL. Repeat it for several. Default: a simulated one.
    edges
        Processes that serve subscribers.
    ingests
        Processes of which one reads upstream, and the others stand by.
    rate
        Messages a second of the simulated relay.
    port
        Port of the one address; the processes listen on the next ones. 0: any that are free.
    dir
        Directory of the database and of all log files, kept at the end. Default: a temporary one.
    restart
        Start a process that has ended again after 5 s, and promote the standby if it was the primary.
    """
    # Before anything is started: the cluster cannot run without it.
    require_driver()
    # With the driver of PostgreSQL, which may be missing.
    from jetstream.cluster import demo, keeper  # noqa: PLC0415
    from jetstream.cluster.members import Shape  # noqa: PLC0415

    shape = Shape(edges=edges, ingests=ingests, upstreams=tuple(_checked(upstream or [])), rate=rate)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    restart_s = keeper.RESTART_S if restart else None
    run(demo.run(demo.Demo(shape, port, dir, restart_s), console))


def _checked(upstreams: list[str]) -> list[str]:
    """Return upstreams as they are given. Raises SettingError."""
    for each in upstreams:
        try:
            parse_upstream(each)
        except ValueError as error:
            raise SettingError(
                "--upstream", shown(each), str(error)
            ) from None  # the cause may quote a password
    return upstreams
