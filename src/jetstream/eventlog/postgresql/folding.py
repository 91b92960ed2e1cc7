"""Folding: writing the states of repositories that have changed to their table, and forgetting some of it."""

from __future__ import annotations

import asyncio
from secrets import token_bytes
from typing import Final

from jetstream.eventlog.postgresql.term import Term
from jetstream.eventlog.postgresql.transactions import Transactions, count_of
from jetstream.eventlog.states import Change, in_steps

FOLD_AT_ONCE: Final = 2_000  # states in one transaction
SAMPLED: Final = 1_000  # neighbours of which half are forgotten when there are too many states
ROW_BYTES: Final = 110  # of `repo` with its index: for the share of the states in the whole log
_PUT_REPO: Final = (
    "INSERT INTO repo SELECT * FROM unnest($1::bytea[], $2::bytea[])"
    " ON CONFLICT (did) DO UPDATE SET state = excluded.state"
)
_KNOWN_REPOS: Final = "SELECT count(*) FROM repo WHERE did = ANY($1::bytea[])"
_DROP_REPOS: Final = "DELETE FROM repo WHERE did = ANY($1::bytea[])"
_COUNT_REPOS: Final = "UPDATE state SET repos = repos + $1"
# The sample goes on at the start of the table when it reaches the end.
_FORGET: Final = (
    "DELETE FROM repo WHERE did IN (SELECT did FROM (SELECT did, state FROM ("
    "(SELECT did, state, 1 AS turn FROM repo WHERE did >= $1 ORDER BY did LIMIT $2) UNION ALL"
    " (SELECT did, state, 2 AS turn FROM repo WHERE did < $1 ORDER BY did LIMIT $2)"
    ") AS both_turns ORDER BY turn, did LIMIT $2) AS sample ORDER BY state LIMIT $3)"
)


class Folding:
    """Keeps the table of states of one term. `states_max` is how many are kept."""

    def __init__(
        self, term: Term, transactions: Transactions, states_max: int, *, sampled: int = SAMPLED
    ) -> None:
        """Take the bounds. `sampled` is how many neighbours are compared at once when some are forgotten."""
        self._term = term
        self._transactions = transactions
        # How many rows the table may have. Above it, the states with the oldest revs go.
        self._states_max = states_max
        self._sampled = sampled

    async def fold(self) -> None:
        """Write states that have changed to their table, in steps; then forget those that are too many.

        Steps of `FOLD_AT_ONCE` states, each a transaction, beside appends. If one fails, the next call
        folds the same states again, with the same result. Raises Fenced, and what asyncpg raises.
        """
        term, repos = self._term, self._term.repos
        async with term.writing:
            repos.begin_fold(term.last_id)
        for step in await asyncio.to_thread(in_steps, repos.folding, FOLD_AT_ONCE):
            repos.rows += await self._fold_step(step)
        async with self._transactions.begin() as connection:
            await connection.execute("UPDATE state SET folded_id = $1", repos.folding_id)
        repos.end_fold()
        while repos.rows > self._states_max:
            repos.rows -= await self.forget_some(token_bytes(15))

    async def _fold_step(self, step: list[Change]) -> int:
        """Write some states; return how many rows their table has more than before.

        `step` is in the order of the keys, so two steps touch few pages in common.
        """
        kept = [(did, state) for did, state in step if state is not None]
        dids, gone = [did for did, _ in kept], [did for did, state in step if state is None]
        async with self._transactions.begin() as connection:
            added = len(dids) - await connection.fetchval(_KNOWN_REPOS, dids)
            await connection.execute(_PUT_REPO, dids, [state for _, state in kept])
            if gone:
                added -= count_of(await connection.execute(_DROP_REPOS, gone))
            await connection.execute(_COUNT_REPOS, added)
        return int(added)

    async def forget_some(self, start: bytes) -> int:
        """Delete the states with the oldest revs of a sample; return how many.

        Keys are hashes, so neighbours are a sample: those from `start` on.
        """
        async with self._transactions.begin() as connection:
            status = await connection.execute(_FORGET, start, self._sampled, self._sampled // 2)
            deleted = count_of(status)
            await connection.execute(_COUNT_REPOS, -deleted)
        return deleted
