"""Repositories whose first message waits for a task, with the messages behind it in `RepoQueues`.

The task brings a key, or examines the message. When it is done, the repository is *ready*, and its messages
are judged in order, until one must wait again. What waits for too long, or has no room, is let go
(`repo_queues`): its repository is ready at once, and it is judged with what is known.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from jetstream.admission.examiners.examination import Finding
from jetstream.admission.message import Message
from jetstream.admission.repo_queues import RepoQueues


class _First(NamedTuple):
    """The message that its repository waits for, and what it waits for itself."""

    message: Message
    # Returns the finding that the message has then. Cancelled if the message is let go.
    task: asyncio.Task[Finding | None]


class Suspended:
    """All repositories that wait. `on_ready` is called when one has become ready."""

    def __init__(self, waiting: RepoQueues[Message], on_ready: Callable[[], None]) -> None:
        self._waiting = waiting
        self._on_ready = on_ready
        # By DID. Those that are ready are among them, until `take_ready` returns them.
        self._first: dict[str, _First] = {}
        # Messages that were let go, in order, by DID.
        self._let_go: dict[str, list[Message]] = {}
        # DIDs whose task is done.
        self._ready: deque[str] = deque()

    def __len__(self) -> int:
        """Return how many messages wait."""
        return len(self._waiting) + sum(map(len, self._let_go.values()))

    def __contains__(self, did: str) -> bool:
        """Return whether messages of a repository belong behind one that waits."""
        return did in self._first

    def messages(self, did: str) -> list[Message]:
        """Return the messages of a repository that wait."""
        return [*self._let_go.get(did, ()), *self._waiting.items(did)]

    def begin(self, message: Message, waiting: Coroutine[Any, Any, Finding | None]) -> None:
        """Let a message wait until `waiting` returns its finding, and its repository with it.

        `waiting` runs as a task of its own. No message of the repository waits here already.
        """
        did = message.did
        task = asyncio.create_task(waiting)
        self._first[did] = _First(message, task)
        task.add_done_callback(lambda _: self._note_ready(did))
        self.add(message)

    def add(self, message: Message) -> None:
        """Add a message behind those of its repository that wait."""
        self._note_let_go(self._waiting.hold(message.did, message, message.size, message.since))

    def end_due(self, now: float, most: int) -> None:
        """Let go what has waited for its time, about `most` messages."""
        due = self._waiting.due(now, most)
        for _, message in due:
            message.is_late = True
        self._note_let_go(due)

    def next_due(self) -> float | None:
        """Return when `end_due` has something next; None: nothing waits."""
        return self._waiting.next_due()

    @property
    def has_ready(self) -> bool:
        """Whether a repository is ready."""
        return bool(self._ready)

    def take_ready(self) -> list[Message]:
        """Return the messages of a repository that is ready, which then waits no longer.

        Those that were let go come first, as they were before the others. Raises what the task has
        raised, such as WorkerError.
        """
        did = self._ready.popleft()
        message, task = self._first.pop(did)
        if not task.cancelled():
            message.finding = task.result()
        return self._let_go.pop(did, []) + self._waiting.release(did)

    def close(self) -> None:
        """End all tasks. What waits is neither judged nor stored."""
        for _, task in self._first.values():
            task.cancel()

    def _note_let_go(self, messages: list[tuple[str, Message]]) -> None:
        """Have messages judged with what is known: cancel the task of their repository, so it is ready."""
        for did, message in messages:
            message.is_let_go = True
            self._let_go.setdefault(did, []).append(message)
            self._first[did].task.cancel()

    def _note_ready(self, did: str) -> None:
        """Put a repository among those that are ready. Called when its task is done or cancelled."""
        self._ready.append(did)
        self._on_ready()
