"""The command line: one function for each command, which calls the module that does the work.

    main ─▶ cyclopts: which command, which flags ─▶ import of the command's module ─▶ its function

Commands are imported when they run, so that `--help` is quick. The exit code is 2 for a wrong command
line or setting, and 1 for what went wrong otherwise; either comes with one line on standard error. Some
commands have more codes, which their help says. An error that this package does not raise on purpose has
a traceback: it is a bug.

Docstrings of commands, and of the classes of their flags, are the help pages. What only developers need
is in comments.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

from cyclopts import App, CycloptsError, Parameter

from jetstream import __version__, logging_setup
from jetstream.cli.go_flags import GoFlags
from jetstream.cli.help import PlainWords
from jetstream.errors import JetstreamError, SettingError
from jetstream.runtime import run
from jetstream.settings import Settings, settings, similar_variable, unused_variables

# The name and the help of all commands below it. `version` answers `--version`.
app = App(
    name="jetstream",
    help="The ATProto firehose as light, friendly JSON over WebSocket.",
    version=__version__,
    help_formatter=PlainWords(),
)

# With its help text here, a command is not imported for `--help`.
app.command(
    "jetstream.cli.completion:install",
    name="--install-completion",
    help="Install completion for the shell that is in use.",
)
app.command("jetstream.cli.doctor:doctor", help="Say what to change for `serve` with the same flags.")
app.command("jetstream.cli.top:top", help="Show the figures of a server, live in the terminal.")
app.command("jetstream.cli.tail:tail", help="Print the events of a Jetstream, one JSON object per line.")
# With its help text here, the module of this command is not imported for the list of commands either.
# That shows the first line.
_DEMO_HELP = """Run a cluster on this machine: PostgreSQL, ingests, edges.

There is a synchronous standby of the database, one ingest leads and the others stand by, and all edges have
one address. Without --upstream, they read a simulated relay. It shows each process with its ID, and what to
try, until Ctrl-C. docs/many-machines.md has a failover rehearsal.

It needs PostgreSQL 15 or later (Debian, Ubuntu: apt install postgresql), and listens on 127.0.0.1 only.
"""
app.command("jetstream.cli.demo_cluster:demo_cluster", name="demo-cluster", help=_DEMO_HELP)
app.command("jetstream.cli.simulate:simulate", help="Simulate an AT Protocol network, offline.")
app.command("jetstream.cli.simulate:record", help="Record a firehose to a file that `simulate` can replay.")
app.command("jetstream.cli.verify:verify", help="Verify the commits of a recording.")
app.command(
    "jetstream.cli.bench:bench", help="Load a Jetstream with subscribers and measure what they receive."
)
# Groups of commands: `jetstream subscribers list`, and so on.
subscribers = app.command(App(name="subscribers", help="See and disconnect the subscribers of a server."))
subscribers.command("jetstream.cli.subscribers:list_", name="list", help="Show who is connected.")
subscribers.command("jetstream.cli.subscribers:kick", help="Disconnect subscribers, and print how many.")

log = app.command(App(name="log", help="Inspect, check and repair an event log."))
log.command("jetstream.cli.log:stats", help="Show the size of the log and what is in it.")
log.command("jetstream.cli.log:check", help="Verify every checksum.")
log.command("jetstream.cli.log:repair", help="Keep every intact segment of a damaged log.")
log.command("jetstream.cli.log:rebase_time", help="Move positions that are ahead of the clock back to it.")
log.command("jetstream.cli.log:cat", help="Write events, one JSON object per line.")
log.command("jetstream.cli.log:migrate", help="Create or change the tables of a log in PostgreSQL.")
log.command("jetstream.cli.log:copy", help="Copy a log from SQLite into PostgreSQL.")

dictionary = app.command(App(name="dictionary", help="Get the public dictionary for compressed messages."))
dictionary.command("jetstream.cli.dictionary:fetch", help="Fetch it into the data directory.")

keys = app.command(App(name="keys", help="Get the signing keys of accounts."))
_IMPORT_HELP = """Fetch the signing keys of all did:plc accounts.

Reads the export of a PLC directory into the data directory, for `jetstream serve --verify full`. A server
may be running.

Ctrl-C is safe: the next run goes on where this one was. A run after a complete one fetches what is new.

Exit codes: 0 all keys are there; 1 a failure, what was read is kept; 2 a wrong command line or setting;
130 interrupted before the end.
"""
keys.command("jetstream.cli.keys:import_keys", name="import", help=_IMPORT_HELP)
# What went wrong at runtime; a wrong command line or setting.
EXIT_FAILURE = 1
EXIT_USAGE = 2


@app.command
def serve(
    settings: Settings | None = None, *, go: Annotated[GoFlags | None, Parameter(name="*", show=False)] = None
) -> None:
    """Read the firehose of a relay or PDS and serve its events.

    A DURATION is 90m, 24h, 3d or 1h30m. A SIZE is 512MiB or 20GB. An ADDRESS is :6008, 127.0.0.1:6008 or
    [::1]:6008. `jetstream doctor` takes the same flags, and says what is wrong with them on this machine.
    """
    settings = settings or Settings()
    logging_setup.configure(settings.log_level, settings.log_format)
    _log_unused(go or GoFlags())
    # From here on lines of the log are written as the settings say. What is wrong with the settings by
    # themselves has been said before, by cyclopts.
    # Neither is needed by `--help` and the other commands.
    if settings.edges:
        from jetstream.supervisor import supervisor  # noqa: PLC0415

        run(supervisor.serve(settings))
    else:
        from jetstream import app  # noqa: PLC0415

        run(app.serve(settings))


def _log_unused(go: GoFlags) -> None:
    """Log what was given and has no effect.

    Flags and variables of the Go server are one line each: they stay in a command line that is moved
    here. An unknown variable is a warning, since it may be misspelled.
    """
    import structlog  # noqa: PLC0415 - as in `serve`

    logger = structlog.get_logger(__name__)
    unused, unknown = unused_variables(os.environ)
    if flags := go.given():
        logger.info("ignoring flags that only the Go server has", names=flags)
    if unused:
        logger.info("ignoring variables that only the Go server has", names=unused)
    if unknown:
        meant = {name: similar for name in unknown if (similar := similar_variable(name))}
        more = {"did_you_mean": meant} if meant else {}
        logger.warning("ignoring unknown variables", names=unknown, **more)


def _fail(code: int, text: str) -> NoReturn:
    """Print one line, and end with a code. Line breaks in the text become spaces."""
    print(f"jetstream: {' '.join(text.split())}", file=sys.stderr)  # noqa: T201 - what a command line says
    sys.exit(code)


def _without_command(arguments: list[str]) -> str:
    """Return a hint for a command line of the Go server, which has no commands: `jetstream --ws-url …`.

    Empty if its first argument is no flag of `serve`.
    """
    first = arguments[0].partition("=")[0] if arguments else ""
    flags = {flag for each in settings() for flag in (each.flag, *each.other_flags)}
    return f" Did you mean `jetstream serve {first}`?" if first in flags else ""


def main(arguments: list[str] | None = None) -> None:
    """Run a command line, by default that of the process.

    Returns after a command that went well; else raises SystemExit with the exit code.
    """
    try:
        app(arguments, exit_on_error=False, print_error=False)
    # The order matters: a SettingError is a JetstreamError as well.
    except CycloptsError as error:
        _fail(EXIT_USAGE, f"{error}{_without_command(sys.argv[1:] if arguments is None else arguments)}")
    except SettingError as error:
        _fail(EXIT_USAGE, str(error))
    except JetstreamError as error:
        _fail(EXIT_FAILURE, str(error))
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would raise again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
