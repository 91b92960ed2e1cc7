"""What a process is told first: the settings that are its own, and its share of what all have together."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from typing import Final, NamedTuple

from jetstream.limits import Limits
from jetstream.settings import Settings
from jetstream.supervisor.channel import ChannelMessage
from jetstream.supervisor.process import Place

# IDs of subscribers are unique: those of one process begin at a multiple of this.
IDS_PER_PROCESS: Final = 1_000_000_000


class Setup(NamedTuple):
    """What a process runs with."""

    settings: Settings
    limits: Limits
    first_id: int  # what the IDs of its subscribers begin after
    terminal: bool  # whether what the supervisor logs goes to one
    subscribers: int  # how many it may have if they are spread evenly

    @classmethod
    def of(cls, settings: Settings, limits: Limits, place: Place, number: int, *, is_first: bool) -> Setup:
        """Return the setup of a process of a place. `number` is its own among all that were started.

        `is_first` tells whether no process of this place was ready before.
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
        """Return the message that tells it."""
        return ChannelMessage("setup", body=pickle.dumps(tuple(self)))

    @classmethod
    def read(cls, message: ChannelMessage) -> Setup:
        """Return what the supervisor has told."""
        return cls(*pickle.loads(message.body))  # noqa: S301 - of the supervisor
