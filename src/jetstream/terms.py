"""Leading a log in PostgreSQL, whenever this process may: each term has an `Intake` of its own.

    stand by ──▶ lead ──▶ open the intake after the log's cursors ──▶ read upstream ──▶ fenced ──▶ stand by

The log is read at all times; who writes it makes no difference to readers. When a term ends, what was
stamped in it and not stored is dropped with its intake. The next one reads it from upstream again.

`lead` waits until this process may write, and returns a `Term`. While the term lasts, an intake reads
upstream and writes to it. In a cluster, one process leads and the others stand by here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from jetstream.conditions import Conditions
from jetstream.errors import Fenced, LogCorrupt, LogError
from jetstream.eventlog import ReadWriteLog
from jetstream.eventlog.opening import erased_statuses
from jetstream.eventlog.postgresql.leading import Candidate, lead
from jetstream.eventlog.postgresql.store import PostgresLog
from jetstream.eventlog.postgresql.term import Term
from jetstream.eventlog.postgresql.trimming import Retention
from jetstream.eventlog.postgresql.upkeep import Upkeep
from jetstream.intake import Intake, upstreams_of
from jetstream.limits import Limits
from jetstream.runtime import first_error
from jetstream.settings import Settings

logger = structlog.get_logger(__name__)

# Seconds between a term that has failed and the next attempt to lead.
AGAIN_S: Final = 1.0


class Terms:
    """The terms of this process, one after another, with pauses in which another process leads.

    `new_intake` makes the intake of a term, which writes to the log that it is given. The condition
    `not_leading` holds while this process would not lead if it had to.
    """

    def __init__(
        self,
        log: PostgresLog,
        candidate: Candidate,
        retention: Retention,
        new_intake: Callable[[ReadWriteLog], Intake],
        conditions: Conditions,
    ) -> None:
        # Read by this process at all times, in terms and between them.
        self._log = log
        # When it leads, and under which conditions; what refuses it becomes the condition
        # `not_leading`.
        self._candidate = candidate._replace(on_refusal=lambda why: conditions.set("not_leading", why))
        # What is kept. The process that leads trims the log.
        self._retention = retention
        self._new_intake = new_intake
        # What reads upstream; None while this process stands by, and while a term begins.
        self.intake: Intake | None = None

    async def run(self, reloading: asyncio.Event) -> None:
        """Stand by and lead in turn, until cancelled. `reloading` is for `Intake.run`.

        Raises what is wrong with this process or the log, such as LogCorrupt. What may pass ends the
        term.

        After an error that may pass, it waits for `AGAIN_S` seconds before it stands by again. After
        the loss of the term it does not: another process leads.
        """
        while True:
            term = await lead(self._log, self._candidate)
            try:
                await self._lead(term, reloading)
            except Exception as raised:
                error = _cause(raised)
                if not _may_pass(error):
                    raise
                logger.warning("log: the term has ended, standing by", reason=str(error))
                if not isinstance(error, Fenced):
                    await asyncio.sleep(AGAIN_S)

    async def _lead(self, term: Term, reloading: asyncio.Event) -> None:
        """Read upstream until the term ends.

        Raises what has ended it, alone or in an exception group, and SettingError for upstreams that cannot
        be used. In every case, the intake is closed before the term is given up.
        """
        try:
            # It runs until the term ends, which refers to it.
            Upkeep(term, self._retention)
            intake = self._new_intake(term)
            try:
                await intake.open()
                self.intake = intake
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(intake.run(reloading))
                    await term.ended.wait()
                    # Fenced, or another error of the log: it ends the task group, and with it the intake.
                    term.raise_failure()
            finally:
                self.intake = None
                await intake.close()
        finally:
            await term.resign()


def _cause(raised: Exception) -> BaseException:
    """Return the error that has ended a term: that it is over, whatever came of it, or the first one.

    When a term is lost, several tasks fail at about the same time, each in its own way.
    """
    if not isinstance(raised, ExceptionGroup):
        return raised
    return first_error(raised.subgroup(Fenced) or raised)


def _may_pass(error: BaseException) -> bool:
    """Tell whether a later term may go well: the database is away, or has refused something.

    A damaged log does not mend itself, and an error of another kind is a bug or a setting.
    """
    return isinstance(error, LogError) and not isinstance(error, LogCorrupt)


def terms_of(
    settings: Settings,
    log: PostgresLog,
    clock: Callable[[], int],
    new_intake: Callable[[ReadWriteLog], Intake],
    conditions: Conditions,
    limits: Limits,
) -> Terms:
    """Return the terms of a server, by its settings. `clock` gives unix microseconds.

    With a fixed list of upstreams, a process leads only a log whose cursors are of the same ones.
    Raises SettingError for upstreams that cannot be used.
    """
    # Which upstreams there are is fixed by `--upstream`; a file of them may change at any time.
    may_change = settings.upstream_file is not None or bool(settings.upstream_cursor)
    candidate = Candidate(
        takeover_s=settings.takeover_after,
        erase=erased_statuses(settings),
        mirrors=settings.mirrored is not None,
        sources=None if may_change else {each.name for each in upstreams_of(settings, limits)},
        clock=clock,
    )
    retention = Retention(settings.retention, settings.retention_bytes, clock)
    return Terms(log, candidate, retention, new_intake, conditions)
