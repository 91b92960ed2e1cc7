"""Which of several servers to connect to, where to start there, and which events it has repeated. Pure.

Servers store the same event at different times, so a cursor of one is only nearly right on another. After a
change of server the cursor goes back by the *rewind*, and events that came before are left out:

     server A   ──────e1──────e2──────e3──────┤ lost, cursor c
     server B        ────────e1────────e2──────────e3──────e4─────▶
                      ├── rewind ──▶c── rewind ──▶
                      start            events are compared up to here

This is exact if the two servers' times of one event differ by no more than the rewind.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import orjson

from jetstream.client.message import Mark, Message

_OF_SERVER: Final = frozenset({"seq", "time_us"})
RECENT_MAX: Final = 100_000  # events that are remembered, of 150 bytes each


class Recent:
    """The events of the last `window_us`, at most `most` of them."""

    def __init__(self, window_us: int, most: int = RECENT_MAX) -> None:
        self._window_us = window_us
        self._most = most
        # The same events twice: in the order in which they came, and to look them up.
        self._times: deque[tuple[int, bytes]] = deque()
        self._keys: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def add(self, key: bytes, time_us: int) -> None:
        """Remember an event, and forget those that are too old or too many."""
        if key in self._keys:
            return
        self._keys.add(key)
        self._times.append((time_us, key))
        while len(self._times) > self._most or self._times[0][0] < time_us - self._window_us:
            self._keys.remove(self._times.popleft()[1])


class Route:
    """The server that is connected to next, and the position there. One for a subscription.

    What has not come yet is at or above the cursor on each server that has sent something, and so at or above
    that cursor minus the rewind on every other one. The highest of these is where a server starts.
    """

    def __init__(self, servers: int, cursor: int | None, rewind_us: int, *, elsewhere: bool = False) -> None:
        """`elsewhere`: the cursor may be of any of the servers, so the first one starts below it too."""
        # The number of the server that is connected to, or is next.
        self.server = 0
        # Whether the server has sent anything since `start`.
        self.heard = False
        self._servers = servers
        self._rewind_us = rewind_us
        # Where to start while nothing has come from any server; None: live.
        self._first = cursor
        if elsewhere and servers > 1 and cursor is not None:
            self._first = max(0, cursor - rewind_us)
        # By server: where to resume there.
        self._cursors: dict[int, int] = {}
        # Up to which position events may be repetitions; set with the first message of a connection.
        self._compare_to = -1
        # Twice the rewind: one server may be ahead of a second, and that ahead of a third.
        self._recent = Recent(2 * rewind_us) if servers > 1 else None

    @property
    def cursor(self) -> int | None:
        """Where to start on the server; None: live."""
        if not self._cursors:
            return self._first
        return max(self._cursors.get(self.server, 0), self._highest_elsewhere - self._rewind_us)

    @property
    def _highest_elsewhere(self) -> int:
        return max((cursor for server, cursor in self._cursors.items() if server != self.server), default=0)

    def start(self) -> int | None:
        """Return the cursor with which to connect to the server."""
        self.heard = False
        return self.cursor

    def begin(self, live: int) -> int | None:
        """Note that the server is connected to. Return where it begins if it had no cursor: at `live`."""
        if self.cursor is not None:
            return None
        self._cursors[self.server] = live
        return live

    def received(self, item: Message | Mark) -> bool:
        """Move on to what the server has sent. Return whether it is new."""
        position = item.cursor if isinstance(item, Mark) else item.time_us + 1
        assert position is not None  # a heartbeat says it
        if not self.heard:
            self._arrive(position)
        self._cursors[self.server] = position
        return isinstance(item, Mark) or self._recent is None or self._is_new(item, self._recent)

    def lost(self) -> None:
        """Choose the next server: the same after a connection on which something was received."""
        if not self.heard:
            self.skip()

    def skip(self) -> None:
        """Choose the next server."""
        self.server = (self.server + 1) % self._servers

    def _arrive(self, position: int) -> None:
        """Take the first message of a connection."""
        self.heard = True
        self._compare_to = (
            self._highest_elsewhere + self._rewind_us if self._cursors.keys() - {self.server} else -1
        )
        if position < (self.cursor or 0):
            # It is far behind the others, by its clock. So their cursors say nothing of it or of a third.
            self._cursors.clear()

    def _is_new(self, event: Message, recent: Recent) -> bool:
        key = key_of(event)
        if event.time_us <= self._compare_to and key in recent:
            return False
        recent.add(key, event.time_us)
        return True


def key_of(event: Message) -> bytes:
    """Return what identifies an event on every server.

    For a commit it is the repo, the revision and the path. For another event it is all that its account has
    said: relays number messages differently, so the number is left out.
    """
    commit = event.get("commit")
    if isinstance(commit, dict):
        path = (commit.get("rev"), commit.get("collection"), commit.get("rkey"))
        return orjson.dumps((event.get("did"), *path))
    said = event.get("identity") or event.get("account") or event
    without = (
        {name: said[name] for name in said if name not in _OF_SERVER} if isinstance(said, dict) else said
    )
    return orjson.dumps((event.get("did"), without), option=orjson.OPT_SORT_KEYS)
