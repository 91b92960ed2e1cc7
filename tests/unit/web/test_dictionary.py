"""The page `/zstd-dictionary`."""

from __future__ import annotations

import orjson
import pytest

from jetstream.web.dictionary import page
from jetstream.web.http import Request, Response

ID = 20261127
DATA = b"\x37\xa4\x30\xec" + ID.to_bytes(4, "little") + b"the rest"
ETAG = f'"zstd-dict-{ID}"'


def answer(query: str = "", **headers: str) -> Response:
    return page(lambda: DATA)(Request("GET", "/zstd-dictionary", query, 1, headers))


def error(response: Response) -> dict[str, str]:
    assert response.body is not None
    found: dict[str, str] = orjson.loads(response.body)
    return found


@pytest.mark.parametrize("query", ["", f"id={ID}", f"id=0{ID}", "id=", "other=1", f"id={ID}&id=x"])
def test_it_is_the_dictionary_with_its_id(query: str) -> None:
    response = answer(query)
    assert (response.status, response.body, response.content_type) == (200, DATA, "application/octet-stream")
    assert response.headers == {
        "ETag": ETAG,
        "Cache-Control": "public, max-age=31536000, immutable",
        "X-Zstd-Dictionary-Id": str(ID),
    }


@pytest.mark.parametrize("known", [ETAG, f"W/{ETAG}", "*", f'"other", {ETAG}', f'{ETAG},"other"'])
def test_a_client_that_has_it_is_sent_no_bytes(known: str) -> None:
    response = answer(**{"if-none-match": known})
    encoded = response.encode(0, keep_alive=True)
    assert response.status == 304
    assert encoded.startswith(b"HTTP/1.1 304 Not Modified\r\n")
    assert f"ETag: {ETAG}\r\n".encode() in encoded
    assert f"Content-Length: {len(DATA)}\r\n".encode() in encoded
    assert encoded.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("known", ["", '"other"', ETAG.strip('"'), ETAG[:-1]])
def test_a_client_that_has_another_is_sent_it(known: str) -> None:
    assert answer(**{"if-none-match": known}).status == 200


@pytest.mark.parametrize("asked", ["0", "1", "1612007021", "-1", "99999999999999999999"])
def test_another_id_is_not_found_and_the_current_one_is_named(asked: str) -> None:
    response = answer(f"id={asked}", **{"if-none-match": "*"})
    assert (response.status, response.content_type) == (404, "application/json")
    assert error(response) == {
        "error": "DictionaryNotFound",
        "message": f"there is no dictionary {asked} here: the current one is {ID}",
    }


@pytest.mark.parametrize("asked", ["x", "1.0", "0x1", "%D9%A1", "1" * 21, "+1", "%00", "1" * 5_000])
def test_what_is_no_integer_is_refused(asked: str) -> None:
    response = answer(f"id={asked}")
    assert response.status == 400
    body = error(response)
    assert body["error"] == "InvalidRequest"
    assert len(body["message"]) < 200
