"""Prints the events of a Jetstream, one JSON object a line, with `atproto-jetstream` 0.3.0.

    client.py LIBRARY URL COMPRESS CURSOR [COLLECTION…]

LIBRARY is the directory into which the library is installed. COMPRESS is true or false; a CURSOR of 0 means
live. The library does not reconnect by itself, so this program does, one microsecond after the last event.

The library needs Python 3.14: for `compression.zstd`, and because it names classes in annotations before they
exist. On an older Python, `backports.zstd` stands for the one, and postponed annotations for the other. Its
source is used as it is.
"""

from __future__ import annotations
import __future__

import asyncio
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def load(library: str) -> ModuleType:
    """Import the library, also on a Python that it does not support."""
    sys.path.insert(0, library)
    if sys.version_info >= (3, 14):
        import atproto_jetstream

        return atproto_jetstream
    from backports import zstd  # type: ignore[import-not-found]

    sys.modules["compression"], sys.modules["compression.zstd"] = ModuleType("compression"), zstd
    path = Path(library) / "atproto_jetstream" / "__init__.py"
    module = ModuleType("atproto_jetstream")
    module.__file__ = str(path)
    code = compile(path.read_text(), path, "exec", flags=__future__.annotations.compiler_flag)
    exec(code, vars(module))
    return module


def plain(value: Any) -> Any:
    """Return an event, which is made of named tuples, as objects. What is None was absent."""
    if hasattr(value, "_asdict"):
        return {key: plain(item) for key, item in value._asdict().items() if item is not None}
    return value


async def main(library: str, url: str, compress: str, cursor_text: str, *collections: str) -> None:
    """Print events until killed."""
    jetstream = load(library)
    cursor = int(cursor_text)
    while True:
        options = jetstream.JetstreamOptions(
            endpoint=url,
            wanted_collections=list(collections),
            cursor=cursor or None,
            compress=compress == "true",
        )
        try:
            async with jetstream.Jetstream(options) as stream:
                async for event in stream:
                    cursor = event.time_us + 1
                    print(json.dumps(plain(event)), flush=True)
        except (TimeoutError, OSError) as error:
            print(error, file=sys.stderr)
        await asyncio.sleep(0.05)


asyncio.run(main(*sys.argv[1:]))
