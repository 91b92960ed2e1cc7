"""Flags of the Go server that have no meaning here: accepted, and named once in the log.

So its command line can be used as it is (docs/coming-from-go.md). Flags of the Go server that have a
meaning are other names of settings.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from cyclopts import Parameter

# Any text is accepted, and none is parsed. Help pages do not show them.
_Unused = Annotated[str | None, Parameter(show=False, negative=())]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class GoFlags:
    """The flags of `UNUSED_VARIABLES` in `settings`, as they were given; None: not given."""

    clickhouse_dsn: _Unused = None
    liveness_ttl: _Unused = None
    max_queue_size: _Unused = None
    max_sub_rate: _Unused = None
    num_shards: _Unused = None
    pebble_dir: _Unused = None
    worker_count: _Unused = None

    def given(self) -> list[str]:
        """Return the flags that were given."""
        return [
            f"--{field.name.replace('_', '-')}"
            for field in fields(self)
            if getattr(self, field.name) is not None
        ]
