"""What a Jetstream says of itself when it accepts a connection: whether it is one of ours. Pure.

One of ours, at the path of the v2 wire, answers with these header fields. No other server does:

    Jetstream-Wire: v2
    Jetstream-Cursor: 1700000000000000    where the stream begins: no later than a day from now
    Jetstream-Forget: deleted             accounts whose records it erases, when they end so

The fields are a claim. What follows from it is checked with each message: its form, and that positions rise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from jetstream.upstreams import AHEAD_MAX_US

_POSITION: Final = re.compile(r"[0-9]{1,18}", re.ASCII).fullmatch
_STATUSES: Final = re.compile(r"none|[a-z]{1,64}(,[a-z]{1,64}){0,9}", re.ASCII).fullmatch


class Offer(NamedTuple):
    """A stream with positions that may be taken over."""

    begins: int  # the position from which nothing is missing in it
    erases: frozenset[str]  # statuses of accounts whose records are erased


def offer_of(fields: Mapping[str, str], now_us: int) -> Offer | None:
    """Return what the header of a response offers; None: it is no server of ours.

    No event at a position further ahead of the clock is taken (`OwnStream`), so no stream begins there.
    """
    begins, erases = fields.get("Jetstream-Cursor", ""), fields.get("Jetstream-Forget", "")
    if fields.get("Jetstream-Wire") != "v2" or not _POSITION(begins) or not _STATUSES(erases):
        return None
    if int(begins) > now_us + AHEAD_MAX_US:
        return None
    return Offer(int(begins), frozenset(erases.split(",")) - {"none"})
