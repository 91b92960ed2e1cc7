"""One process of a server: `python -m jetstream.supervisor.child_main PLACE SOCKET`.

Its standard input is the control socket, SOCKET the number of the one for connections. It ends when the
supervisor does, however that ends: it reads the end of the control socket, and on Linux it is killed.
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
    """Serve until the supervisor says otherwise."""
    end_with_parent()
    place, passing = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    passing.set_inheritable(False)
    faulthandler.enable()
    with suppress(JetstreamError, asyncio.CancelledError):  # the supervisor says it
        run(_main(place, _control(), passing))


def _control() -> socket.socket:
    """Return the control socket. Programs that are started here must not have it as their standard input."""
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return control


async def _main(place: str, control: socket.socket, passing: socket.socket) -> None:
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
    """Run the service that the setup describes."""
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
