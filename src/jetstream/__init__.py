"""Jetstream: the ATProto firehose as light, friendly JSON over WebSocket.

Read the code in the order in which data flows: `model` defines events, `upstream` decodes the firehose into
events, `ingest` stamps and stores them, `eventlog` keeps them, and `delivery` sends them to subscribers,
which connect through `web`. `app` starts and stops these parts, and `cli` starts `app`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    """Return the version when it is asked for: reading it takes longer than importing most of the client."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # noqa: PLC0415 - see above

    return version("jetstream-server")
