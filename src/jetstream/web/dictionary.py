"""The page `/zstd-dictionary`, which is also `network.bsky.jetstream.getZstdDictionary` of the v2 wire.

The bytes of an ID never change, so a client or a proxy may keep them for ever. A request may name an ID. Then
it gets the dictionary with this ID or none, so that it cannot be one that was kept from before.

A client downloads it once, and passes its ID as `zstdDictionary`. The public dictionary of v1 clients is
not served here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qs

import orjson

from jetstream.web.http import Request, Response
from jetstream.web.pages import Page

_QUERY_CHARS_MAX: Final = 1_000  # so that decoding takes no time; an ID has ten digits
# An ID as a client may send it. One below 0 is an integer, and the ID of no dictionary.
_INTEGER: Final = re.compile(r"-?[0-9]{1,20}", re.ASCII).fullmatch


def page(read: Callable[[], bytes]) -> Page:
    """Return the page. `read` returns the dictionary, whose header has its ID (RFC 8878, section 5).

    Called with `id` or without; 400 and 404 are errors of XRPC, since the same page is a method.
    """

    def handler(request: Request) -> Response:
        """Return the dictionary if it has the ID that was asked for, or if none was."""
        data = read()
        dictionary_id = int.from_bytes(data[4:8], "little")
        asked = parse_qs(request.query[:_QUERY_CHARS_MAX]).get("id", [str(dictionary_id)])[0]
        if not _INTEGER(asked):
            return _refusal(400, "InvalidRequest", f"id: {asked[:40]!r} is not an integer")
        if int(asked) != dictionary_id:
            text = f"there is no dictionary {asked} here: the current one is {dictionary_id}"
            return _refusal(404, "DictionaryNotFound", text)
        return _dictionary(data, dictionary_id, request)

    return handler


def _dictionary(data: bytes, dictionary_id: int, request: Request) -> Response:
    """Return the dictionary, or 304 to a client that has it.

    The ETag has the ID in it, so it never names other bytes.
    """
    etag = f'"zstd-dict-{dictionary_id}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "public, max-age=31536000, immutable",
        "X-Zstd-Dictionary-Id": str(dictionary_id),
    }
    return Response(304 if request.has(etag) else 200, data, "application/octet-stream", headers)


def _refusal(status: int, name: str, text: str) -> Response:
    """Return a refusal as XRPC has them.

    `name` is that of the lexicon.
    """
    return Response(status, orjson.dumps({"error": name, "message": text}), "application/json")
