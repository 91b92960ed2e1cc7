"""The roles of a server: what of reading upstream and serving subscribers it does. Pure.

all      both, over a log of its own
ingest   reads upstream and writes the log; serves no subscribers
edge     serves subscribers from a log that another process writes

`--role` sets it, and `--edges` starts one process of role ingest and several of role edge. An ingest
and an edge share a log: the file on one machine, or a database on many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Role = Literal["all", "ingest", "edge"]

# Fields of `Settings` without effect in a role, beside those of upstreams for an edge. A server says which of
# them were given in vain; none is an error, so that one set of flags does for all roles.
UNUSED: Final[Mapping[Role, frozenset[str]]] = {
    "all": frozenset(),
    "ingest": frozenset(
        {
            *("wire", "zstd_dictionary", "zstd_dictionary_url"),
            *("subscriber_buffer", "buffer_total", "slow_timeout", "max_subscribers", "subscriber_tokens"),
            *("address_replays", "address_replay_rate", "address_replay_bytes", "drain"),
        }
    ),
    "edge": frozenset({"retention", "retention_bytes", "forget", "ready_idle", "takeover_after"}),
}


def reads_upstream(role: Role) -> bool:
    """Tell whether a server reads upstream, and writes the log.

    There is one such server for a log at a time, or with PostgreSQL, one that leads.
    """
    return role != "edge"


def serves_subscribers(role: Role) -> bool:
    """Tell whether a server has subscribers.

    An ingest has a port as well, for `/metrics` and the other pages.
    """
    return role != "ingest"
