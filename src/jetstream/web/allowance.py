"""Whether the server may do once more what takes long: rates that hold for all its processes together.

A route spends a token of its own first. A server that has several processes has one more bucket, of which
all of them spend (`supervisor`). So no client gets more by reaching another process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

# Returns whether there was a token, and takes it.
Allowance = Callable[[], Awaitable[bool]]


async def always() -> bool:
    """Allow it: there is one process, and the route has its own rate.

    The default of routes such as `/explain` and `/gaps`.
    """
    return True
