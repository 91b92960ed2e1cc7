"""A queue for each repository whose messages wait, with limits on their number, bytes and time. Pure.

It does not know what they wait for. Two things do so, each in a `RepoQueues` of its own:

    what                                    ends when                                 or after
    --------------------------------------  ----------------------------------------  ---------------------
    messages that need a key, a document    the task that brings it is done           `key_wait_s`
    or an examination                       (`suspended`)
    messages after a break in the chain,    another source has brought the missing    `hold_s`
    while other sources are connected       message

Whatever of the repository comes later belongs behind them, of every kind. The order of a queue is that of
arrival. With revs it is that of the revs, because several sources may bring a repository's messages in any
order. A message without a rev stays behind what came before it.

*Let go.* A message that has waited for its time, or for which there is no room, is *let go*: what becomes of
it is decided without what it waited for. It never waits again for the same. All that is before it in its
queue is let go with it, so the order is kept. Too many messages, or too many bytes: the repository that has
the most makes room. So an account that sends the most commits, or the largest, shortens its own wait, and not
that of the others.

The laws: each message that is held comes out exactly once; those of a repository come out in order; and when
a method returns, no limit is exceeded.
"""

from __future__ import annotations

from bisect import insort
from heapq import heapify, heappop, heappush
from typing import Final, Generic, NamedTuple, TypeVar

Item = TypeVar("Item")

# Entries of a heap that are out of date and are kept: fewer than those in use, or so many.
_STALE_MAX: Final = 64


class _Held(NamedTuple, Generic[Item]):
    """A message that waits. `rev` and `number` give its place."""

    rev: str
    # Numbers rise by arrival, and no two are equal: so a queue is sorted without comparing items.
    number: int
    # When it came, in seconds of the caller's clock, and its bytes of memory.
    since: float
    size: int
    item: Item


class RepoQueues(Generic[Item]):
    """Queues by DID.

    `wait_s` is how many seconds a message waits at most. `repo_max` limits the messages of one
    repository, `messages_max` those of all, and `bytes_max` the bytes of all. Above a limit, messages are
    let go, and none is refused.
    """

    def __init__(self, wait_s: float, repo_max: int, messages_max: int, bytes_max: int) -> None:
        self._wait_s = wait_s
        self._repo_max = repo_max
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        # What waits, by DID, each queue in its order. No queue is empty.
        self._queues: dict[str, list[_Held[Item]]] = {}
        # Since when each message waits, its number and its DID: the first is the oldest. Those that wait no
        # more are removed when they come first, or when they are the greater part.
        self._oldest: list[tuple[float, int, str]] = []
        # The numbers of what waits.
        self._numbers: set[int] = set()
        self._next_number = 0  # of the next message
        # Bytes of what waits, as `hold` was told; those of each queue; and the messages of each queue.
        self.size = 0
        self._sizes = _Amounts()
        self._lengths = _Amounts()

    def __len__(self) -> int:
        """Return how many messages wait."""
        return len(self._numbers)

    def __contains__(self, did: str) -> bool:
        """Return whether a message of a repository waits: then those that come later belong behind it."""
        return did in self._queues

    def items(self, did: str) -> list[Item]:
        """Return the messages of a repository, in order. They go on waiting."""
        return [held.item for held in self._queues.get(did, ())]

    def hold(self, did: str, item: Item, size: int, since: float, rev: str = "") -> list[tuple[str, Item]]:
        """Let a message wait, and return those that are let go since there is no room, in their order.

        `size` is its bytes of memory (`Message.size`). `since` is when it came, in seconds of the clock that
        `due` is given; one that is held again has its old one, and waits no longer than at first. `rev` is
        its place among those of its repository; empty: behind all that are there.
        """
        queue = self._queues.setdefault(did, [])
        if not rev and queue:
            rev = queue[-1].rev
        held = _Held(rev, self._next_number, since, size, item)
        self._next_number += 1
        insort(queue, held)
        self._numbers.add(held.number)
        self._note_size(did, size)
        heappush(self._oldest, (since, held.number, did))
        let_go = self._let_go(did, 1) if len(queue) > self._repo_max else []
        while len(self) > self._messages_max:
            let_go += self._let_go(self._lengths.largest(), 1)
        while self.size > self._bytes_max:
            let_go += self._let_go(self._sizes.largest(), 1)
        return let_go

    def release(self, did: str) -> list[Item]:
        """Remove all messages of a repository, and return them in order: what they waited for is there."""
        return [item for _, item in self._let_go(did, len(self._queues.get(did, ())))]

    def due(self, now: float, most: float = float("inf")) -> list[tuple[str, Item]]:
        """Remove the messages that have waited for their time, with all before them, and return them.

        There may be more once they are `most`.
        """
        found: list[tuple[str, Item]] = []
        while self._numbers and len(found) < most and (first := self._first())[0] + self._wait_s <= now:
            found += self._let_go(first[2], self._place(first[2], first[1]))
        return found

    def next_due(self) -> float | None:
        """Return when `due` has something next; None: nothing waits."""
        return self._first()[0] + self._wait_s if self._numbers else None

    def _first(self) -> tuple[float, int, str]:
        """Return the message that waits the longest."""
        while self._oldest[0][1] not in self._numbers:
            heappop(self._oldest)
        return self._oldest[0]

    def _place(self, did: str, number: int) -> int:
        """Return how many messages of a queue there are up to one, that one included."""
        return next(place for place, held in enumerate(self._queues[did], 1) if held.number == number)

    def _note_size(self, did: str, change: int) -> None:
        """Add to the bytes of a queue, or subtract from them, and count its messages again."""
        self.size += change
        if queue := self._queues.get(did):
            self._sizes.set(did, self._sizes.get(did) + change)
            self._lengths.set(did, len(queue))
        else:
            self._sizes.remove(did)
            self._lengths.remove(did)

    def _let_go(self, did: str, count: int) -> list[tuple[str, Item]]:
        """Remove the first `count` messages of a queue, and return them, each with its DID."""
        if not count:
            return []
        queue = self._queues[did]
        first, queue[:count] = queue[:count], []
        if not queue:
            del self._queues[did]
        self._numbers.difference_update(held.number for held in first)
        self._note_size(did, -sum(held.size for held in first))
        if len(self._oldest) > 2 * len(self._numbers) + _STALE_MAX:
            self._oldest = [each for each in self._oldest if each[1] in self._numbers]
            heapify(self._oldest)
        return [(did, held.item) for held in first]


class _Amounts:
    """How much each repository has of something, and which has the most.

    `set` and `largest` take the logarithm of the number of repositories, on average.
    """

    def __init__(self) -> None:
        # By DID: the amount with a minus, and a number that rises with each change.
        self._amounts: dict[str, tuple[int, int]] = {}
        # The same as a heap: the largest amount is the first; of equal ones, the one that has been so the
        # longest. Entries that are out of date are removed when they come first, or are the greater part.
        self._heap: list[tuple[tuple[int, int], str]] = []
        self._changes = 0  # so far

    def get(self, did: str) -> int:
        """Return the amount of a repository; 0 for one that is not here."""
        return -self._amounts.get(did, (0, 0))[0]

    def set(self, did: str, amount: int) -> None:
        """Note an amount."""
        self._changes += 1
        self._amounts[did] = (-amount, self._changes)
        heappush(self._heap, (self._amounts[did], did))
        if len(self._heap) > 2 * len(self._amounts) + _STALE_MAX:
            self._heap = [(amount, did) for did, amount in self._amounts.items()]
            heapify(self._heap)

    def remove(self, did: str) -> None:
        """Note that a repository has nothing."""
        self._amounts.pop(did, None)

    def largest(self) -> str:
        """Return the repository that has the most. There must be one."""
        while self._amounts.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][1]
