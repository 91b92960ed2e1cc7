"""The page `/`: HTML for browsers, text for others."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from tests.unit.web.test_pages import STATUS

from jetstream.status import PdsStatus, Status
from jetstream.web import front_page
from jetstream.web.http import Request, Response
from jetstream.web.page_files import PageFiles

FILES = PageFiles()
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8", "host": "jetstream.example"}


def answer(
    headers: dict[str, str], status: Status = STATUS, wire: str = "classic", **options: bool
) -> Response:
    page = front_page.page(wire, lambda: status, FILES, **options)
    return page(Request("GET", "/", "", 1, headers))


class Elements(HTMLParser):
    """The elements of a page: their names and attributes, and the names of those that are open at its end."""

    VOID = frozenset({"meta", "link", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_text_ends_with_the_upstreams() -> None:
    status = replace(STATUS, pds=PdsStatus(Counter({"connected": 300, "reconnecting": 12}), ()))
    response = answer({}, status)
    shown = " ".join(response.body.decode().partition("\nUpstreams\n")[2].split())
    assert response.content_type == "text/plain; charset=utf-8"
    assert shown == (
        "relay.example:443 idle: wss://relay.example 312 PDSes 300 connected, 0 idle, 12 reconnecting"
    )


@pytest.mark.parametrize("wire", ["classic", "v1"])
def test_a_browser_gets_html_that_is_well_formed_and_names_the_wire(wire: str) -> None:
    response = answer(BROWSER, wire=wire)
    elements = Elements(response.body.decode())
    assert response.content_type == "text/html; charset=utf-8"
    assert elements.open == []
    assert ("body", {"data-wire": wire}) in elements.found
    assert "wss" not in response.body.decode()
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_label_and_reference_leads_to_an_element() -> None:
    elements = Elements(answer(BROWSER).body.decode()).found
    ids = {attributes.get("id") for _, attributes in elements}
    for name in ("for", "aria-labelledby", "aria-describedby", "list"):
        assert {attributes[name] for _, attributes in elements if name in attributes} <= ids
    anchors = {str(attributes.get("href")) for tag, attributes in elements if tag == "a"}
    assert {anchor[1:] for anchor in anchors if anchor.startswith("#")} <= ids


@pytest.mark.parametrize("accept", ["text/html", ""])
def test_it_names_metrics_only_where_they_are(accept: str) -> None:
    headers = BROWSER | {"accept": accept}
    assert b"jetstream.example/metrics" in answer(headers).body
    assert b"jetstream.example/metrics" not in answer(headers, metrics=False).body
    links = [each for tag, each in Elements(answer(BROWSER, metrics=False).body.decode()).found if tag == "a"]
    assert {"href": "metrics"} not in links
    assert {"href": "ready"} in links


def test_a_browser_that_has_the_page_is_sent_no_bytes() -> None:
    first = answer(BROWSER)
    etag = (first.headers or {})["ETag"]
    again = answer(BROWSER | {"if-none-match": etag})
    assert (first.status, again.status) == (200, 304)
    assert answer(BROWSER | {"if-none-match": etag, "host": "other.example"}).status == 200


@pytest.mark.parametrize("headers", [BROWSER, {}])
def test_caches_know_that_it_depends_on_what_is_accepted(headers: dict[str, str]) -> None:
    assert (answer(headers).headers or {})["Vary"] == "Accept"


def test_a_host_is_escaped() -> None:
    assert b"<script>alert" not in answer(BROWSER | {"host": "<script>alert(1)</script>"}).body
