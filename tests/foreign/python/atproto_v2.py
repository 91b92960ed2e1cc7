"""Prints the events of a Jetstream, one JSON object a line, with `atproto` 0.0.73. It knows only the v2 wire.

    atproto_v2.py URL COMPRESS CURSOR [COLLECTION…]

COMPRESS is true or false. A CURSOR of 0 means live, and 1 the oldest event. The library reconnects and
resumes by itself.

An event is printed as the v1 wire has it, without its record: the library turns records into models, which
have more keys than the records.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from atproto_client.models.utils import get_model_as_json  # type: ignore[import-not-found]
from atproto_jetstream import JetstreamClient  # type: ignore[import-not-found]


def v1(payload: dict[str, Any]) -> dict[str, Any]:
    """Return a payload of the v2 wire as an event of the v1 wire."""
    kind = payload["$type"].partition("#")[2]
    names = ("rev", "operation", "collection", "rkey", "cid")
    part = {name: payload[name] for name in names if name in payload} if kind == "commit" else payload[kind]
    return {"did": payload["did"], "time_us": payload["seq"], "kind": kind, kind: part}


def main(url: str, compress: str, cursor: str, *collections: str) -> None:
    """Print events until killed."""
    params: dict[str, Any] = {"collections": list(collections)} if collections else {}
    if cursor != "0":
        params["cursor"] = 0 if cursor == "1" else int(cursor)
    client = JetstreamClient(params, base_uri=url, compress=compress == "true")

    def show(message: Any) -> None:
        assert client.compressed == (compress == "true")
        payload = json.loads(get_model_as_json(message))
        if "seq" in payload:  # else it is an #info
            print(json.dumps(v1(payload)), flush=True)

    client.start(show)
    print("the library takes the stream for finished", file=sys.stderr)


main(*sys.argv[1:])
