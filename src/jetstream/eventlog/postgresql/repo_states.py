"""The states of repositories in a term: in memory as far as they were changed or asked for.

    changed since the last fold ─▶ being folded ─▶ in their table, and loaded when they are asked for

States that have changed are stored with the append that changes them, in its row of the tail. `rotating`
folds them into their table now and then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final

from jetstream.eventlog.postgresql.blocking import BlockingReader
from jetstream.eventlog.states import Repos

LOADED_MAX: Final = 200_000  # states in memory, beside those that have changed
_REPOS: Final = "SELECT did, state FROM repo WHERE did = ANY($1::bytea[])"

Fetch = Callable[..., Awaitable[list[Any]]]


class RepoStates:
    """`fetch` runs a statement. `recent` has what was changed after the row `folded_id` of the tail."""

    def __init__(
        self, address: str, fetch: Fetch, recent: dict[bytes, bytes | None], rows: int, folded_id: int
    ) -> None:
        self._fetch = fetch
        # What has changed since the last fold, and what is being folded.
        self.recent = recent
        self.folding: dict[bytes, bytes | None] = {}
        # What was read of the others; empty bytes: nothing is known.
        self._loaded: dict[bytes, bytes] = {}
        # Reads those that were not loaded.
        self._lookups = BlockingReader(address)
        # Rows of the table. Upkeep changes it.
        self.rows = rows
        # Up to which row of the tail states are in the table, and will be when the fold has ended.
        self.folded_id = self.folding_id = folded_id

    def get(self, did: bytes) -> bytes | None:
        """Return the state of a repository. One that was not loaded costs a round trip. Raises LogError."""
        for changes in (self.recent, self.folding):
            if did in changes:
                return changes[did]
        state = self._loaded.get(did)
        if state is None:
            found = self._lookups.fetch(_REPOS, [did])
            state = found[0]["state"] if found else b""
            self._keep_loaded({did: state})
        return state or None

    async def load(self, dids: Collection[bytes]) -> None:
        """Load states, all at once, so that `get` has them in memory. Raises LogError."""
        known = (self.recent, self.folding, self._loaded)
        missing = [did for did in dids if not any(did in states for states in known)]
        if missing:
            found = dict(await self._fetch(_REPOS, missing))
            self._keep_loaded({did: found.get(did) for did in missing})

    def note(self, changes: Repos) -> None:
        """Note what an append has changed."""
        self.recent.update(changes)

    def begin_fold(self, last_id: int) -> None:
        """Fold all changes up to a row of the tail, unless an earlier fold has not ended."""
        if not self.folding:
            self.folding, self.recent, self.folding_id = self.recent, {}, last_id

    def end_fold(self) -> None:
        """Note that what was being folded is in the table."""
        self._keep_loaded(self.folding)
        self.folding, self.folded_id = {}, self.folding_id

    def close(self) -> None:
        """Close the connection of look-ups."""
        self._lookups.close()

    def _keep_loaded(self, repos: Mapping[bytes, bytes | None]) -> None:
        if len(self._loaded) + len(repos) > LOADED_MAX:
            self._loaded.clear()
        self._loaded.update((did, state or b"") for did, state in repos.items())
