"""One process of a server: `python -m jetstream.supervisor.child_main PLACE SOCKET`.

Its standard input is the control socket, SOCKET the number of the one for connections. PLACE is its
name, such as `edge-2`, for the log. Everything else comes with the first message, the setup.

    start ─▶ "alive" ─▶ setup comes ─▶ `Service` ─▶ "ready" ─▶ … ─▶ "last" ─▶ the channel is closed ─▶ end
                                          └── an error ─▶ "failed" ──────────▶

It ends when the supervisor does, however that ends: it reads the end of the control socket, and on
Linux it is killed. Its exit status is of no use: the supervisor hears the error over the channel, and
says it to the operator.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import socket
import sys
from contextlib import suppress

from jetstream import logging_setup
from jetstream.app import Service
from jetstream.errors import JetstreamError
from jetstream.roles import serves_subscribers
from jetstream.runtime import end_with_parent, housekeeping, raise_file_limit, run, stop_on_signals, tune_gc
from jetstream.supervisor.failures import fields_of
from jetstream.supervisor.setup import Setup
from jetstream.supervisor.siblings import Siblings


def main() -> None:
    """Serve until the supervisor says otherwise.

    Errors of the server's own are not printed here, because the supervisor prints them. Any other error
    is a bug: it is told as well, and its traceback goes to standard error.
    """
    # First of all: the supervisor may end while this process starts.
    end_with_parent()
    place, passing = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    # It was inherited by its number. Processes that are started here must not keep it open.
    passing.set_inheritable(False)
    # A crash in a library leaves a traceback on standard error, whose last line `lines` keeps.
    faulthandler.enable()
    with suppress(JetstreamError, asyncio.CancelledError):  # the supervisor says it
        run(_main(place, _control(), passing))


def _control() -> socket.socket:
    """Return the control socket. Programs that are started here must not have it as their standard input.

    It was inherited as standard input. Standard input is then the null device.
    """
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return control


async def _main(place: str, control: socket.socket, passing: socket.socket) -> None:
    """Run the process: connect the channel, wait for the setup, and serve.

    Raises CancelledError if the supervisor has ended before it sent the setup. An error is told to the
    supervisor before it is raised. The figures of the end are told last, in every case.
    """
    siblings = Siblings(passing)
    await asyncio.get_running_loop().create_unix_connection(lambda: siblings.channel, sock=control)
    siblings.channel.tell("alive")
    try:
        await _serve(place, siblings, Setup.read(await siblings.setup))
    except Exception as error:
        siblings.channel.tell("failed", fields_of(error))
        raise
    finally:
        siblings.say_last()
        await siblings.channel.close()


async def _serve(place: str, siblings: Siblings, setup: Setup) -> None:
    """Run the service that the setup describes, until it stops.

    The limit of open files counts only subscribers that this process may have: the ingest has none.
    Raises what `Service.run` raises.
    """
    settings, limits = setup.settings, setup.limits
    siblings.limits = limits.supervisor
    logging_setup.configure(settings.log_level, settings.log_format, process=place, terminal=setup.terminal)
    most = setup.subscribers if serves_subscribers(settings.role) else 0
    shortage = raise_file_limit(most, limits.web.files_reserved, limits.runtime)
    tune_gc(limits.runtime)
    service = Service(settings, limits, siblings=siblings, first_id=setup.first_id)
    stop_on_signals(siblings.leave)
    async with housekeeping(limits.runtime):
        await siblings.serve(service, shortage)


if __name__ == "__main__":
    main()
