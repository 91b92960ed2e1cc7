"""The states of repositories in a term: in memory as far as they were changed or loaded.

    changed since the last fold ─▶ being folded ─▶ in their table, and loaded before they are asked for

States that have changed are stored with the append that changes them, in its row of the tail. `folding`
writes them to their table now and then.

The event loop never waits for the database here: what is not at hand must be loaded first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from typing import Any, Final

from jetstream.errors import LogError
from jetstream.eventlog.states import Repos

LOADED_MAX: Final = 200_000  # states in memory, beside those that have changed
_REPOS: Final = "SELECT did, state FROM repo WHERE did = ANY($1::bytea[])"

Fetch = Callable[..., Awaitable[list[Any]]]


class RepoStates:
    """The states of one term, in the log of a `name`. `fetch` runs a statement.

    `recent` has what was changed after the row `folded_id` of the tail. Of what was loaded, about
    `loaded_max` states are kept: those that were loaded last are the half of it.
    """

    def __init__(
        self,
        name: str,
        fetch: Fetch,
        recent: dict[bytes, bytes | None],
        rows: int,
        folded_id: int,
        *,
        loaded_max: int = LOADED_MAX,
    ) -> None:
        self._name = name
        self._fetch = fetch
        self._loaded_max = loaded_max
        # What has changed since the last fold, and what is being folded.
        self.recent = recent
        self.folding: dict[bytes, bytes | None] = {}
        # What was read of the others, or folded; None: nothing is known. When it is full, it becomes what was
        # read before, which then goes.
        self._loaded: dict[bytes, bytes | None] = {}
        self._before: dict[bytes, bytes | None] = {}
        # Rows of the table. Upkeep changes it.
        self.rows = rows
        # Up to which row of the tail states are in the table, and will be when the fold has ended.
        self.folded_id = self.folding_id = folded_id

    def _newest_first(self) -> Iterator[Mapping[bytes, bytes | None]]:
        """Yield the mappings in the order in which they count: the first that knows a DID is right."""
        yield from (self.recent, self.folding, self._loaded, self._before)

    def __contains__(self, did: bytes) -> bool:
        """Tell whether a state is at hand."""
        return any(did in states for states in self._newest_first())

    def get(self, did: bytes) -> bytes | None:
        """Return a state that is at hand; None: nothing is known. Raises LogError for one that is not."""
        for states in self._newest_first():
            if did in states:
                return states[did]
        raise LogError(self._name, f"the state of the repository {did.hex()} was not loaded")

    async def load(self, dids: Collection[bytes]) -> None:
        """Have states at hand, at least until the next call. Raises LogError.

        One statement for all that are missing. A DID without a row counts as known to have no state, and
        is not asked for again.
        """
        missing = [did for did in dids if did not in self]
        found = dict(await self._fetch(_REPOS, missing)) if missing else {}
        loaded = {did: found.get(did) for did in missing if did not in self}  # else it has changed meanwhile
        loaded |= {did: self._before[did] for did in dids if did in self._before and did not in self._loaded}
        if len(self._loaded) + len(loaded) > self._loaded_max // 2:
            self._before, self._loaded = self._loaded, {}
        self._loaded |= loaded

    def note(self, changes: Repos) -> None:
        """Note what an append has changed."""
        self.recent.update(changes)

    def begin_fold(self, last_id: int) -> None:
        """Fold all changes up to a row of the tail, unless an earlier fold has not ended.

        Called with `Term.writing` held: the row must be the last one whose changes are noted.
        """
        if not self.folding:
            self.folding, self.recent, self.folding_id = self.recent, {}, last_id

    def end_fold(self) -> None:
        """Note that what was being folded is in the table."""
        self._loaded |= self.folding
        self.folding, self.folded_id = {}, self.folding_id
