"""The commands. Each is a thin door to the module that does the work."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from cyclopts import App, CycloptsError

from jetstream import __version__
from jetstream.errors import JetstreamError, SettingError
from jetstream.runtime import run
from jetstream.settings import Settings, strangers

app = App(
    name="jetstream",
    help="The ATProto firehose as light, friendly JSON over WebSocket.",
    version=__version__,
)

# Each with its own line of help, so that `--help` need not import it.
app.command("jetstream.cli.tail:tail", help="Print the events of a Jetstream, one JSON object a line.")
app.command("jetstream.cli.simulate:simulate", help="Simulate an AT Protocol network, offline.")
app.command("jetstream.cli.simulate:record", help="Record a firehose to a file, for `simulate --replay`.")
app.command("jetstream.cli.bench:bench", help="Load a Jetstream with subscribers, and measure the delay.")
log = app.command(App(name="log", help="Look into an event log, check it, mend it."))
log.command("jetstream.cli.log:stats", help="Say how large the log is and what is in it.")
log.command("jetstream.cli.log:check", help="Verify every checksum.")
log.command("jetstream.cli.log:repair", help="Keep every whole block of a damaged log.")
log.command("jetstream.cli.log:rebase_time", help="Move positions that are ahead of the clock back.")
log.command("jetstream.cli.log:cat", help="Write events as one JSON object a line, v1 wire.")

EXIT_FAILURE = 1
EXIT_USAGE = 2


@app.command
def serve(settings: Settings | None = None) -> None:
    """Read a relay or PDS and serve its events."""
    # `--help` and the other commands do without these.
    from jetstream import app, logging_setup  # noqa: PLC0415

    settings = settings or Settings()
    logging_setup.configure(settings.log_level, settings.log_format)
    _name_strangers()
    run(app.serve(settings))


def _name_strangers() -> None:
    import structlog  # noqa: PLC0415 - as in `serve`

    logger = structlog.get_logger(__name__)
    unused, unknown = strangers(os.environ)
    if unused:
        logger.info("variables of the Go server that have no use here", names=unused)
    if unknown:
        logger.warning("unknown variables, ignored", names=unknown)


def _fail(code: int, text: str) -> NoReturn:
    print(f"jetstream: {' '.join(text.split())}", file=sys.stderr)  # noqa: T201 - what a command line says
    sys.exit(code)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: exit 2 for what was asked wrongly, 1 for what could not be done."""
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(EXIT_USAGE, str(error))
    except SettingError as error:
        _fail(EXIT_USAGE, str(error))
    except JetstreamError as error:
        _fail(EXIT_FAILURE, str(error))
