"""What a process is told first: the settings that are its own, and its share of what all have together.

Some settings hold for the whole server, and each process gets its part: bytes that may wait for
subscribers, and IDs of subscribers. Limits of subscribers and of addresses are not divided: the edges
tell each other what they have (`shared_limits`).
"""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from typing import Final, NamedTuple

from jetstream.limits import Limits
from jetstream.settings import Settings
from jetstream.supervisor.channel import ChannelMessage
from jetstream.supervisor.process import Place

# IDs of subscribers are unique: those of one process begin at a multiple of this. Processes are counted over
# the whole life of the server, so a process that replaces another one begins at IDs of its own.
IDS_PER_PROCESS: Final = 1_000_000_000


class Setup(NamedTuple):
    """What a process runs with.

    It is sent once, before anything else. `settings` and `limits` are complete: a child reads neither
    flags nor variables.
    """

    settings: Settings
    limits: Limits
    # IDs of subscribers of this process are above this one.
    first_id: int
    # Whether the supervisor's standard error is a terminal. The child's is a pipe, and its lines should
    # have the same form and colours.
    terminal: bool
    # How many subscribers it may have if they are spread evenly: by this, it tells whether its limit of
    # open files is enough.
    subscribers: int

    @classmethod
    def of(cls, settings: Settings, limits: Limits, place: Place, number: int, *, is_first: bool) -> Setup:
        """Return the setup of a process of a place. `number` is its own among all that were started.

        `is_first` tells whether no process of this place was ready before. `edges` is 0 in the result: a
        child starts no processes. An edge has at least room for one subscriber's buffer.
        """
        own = replace(
            settings,
            role=place.role,
            # For the first ingest only: those after it go on where it was.
            upstream_cursor=settings.upstream_cursor if is_first else None,
            edges=0,
            drain=settings.drain or 0.0,
            buffer_total=max(settings.buffer_total // settings.edges, settings.subscriber_buffer),
        )
        subscribers = -(-settings.max_subscribers // settings.edges)
        return cls(own, limits, number * IDS_PER_PROCESS, sys.stderr.isatty(), subscribers)

    def encode(self) -> ChannelMessage:
        """Return the message that tells it.

        It is pickled: settings and limits are trees of frozen dataclasses, and the child runs the same
        code.
        """
        return ChannelMessage("setup", body=pickle.dumps(tuple(self)))

    @classmethod
    def read(cls, message: ChannelMessage) -> Setup:
        """Return what the supervisor has told.

        Unpickling is safe here: nothing but the supervisor, which has started this process, has the other end
        of the socket.
        """
        return cls(*pickle.loads(message.body))  # noqa: S301 - of the supervisor
