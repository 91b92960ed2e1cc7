"""The document itself; tests/integration/test_openapi.py compares it with a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from jetstream.web import openapi
from jetstream.web.http import Request
from jetstream.web.methods import ARCHIVE, METHODS, PREFIX
from jetstream.web.parameter_table import EVENT_STREAM, EXPLAIN, GAPS, SUBSCRIBE, SUBSCRIBE_EVENTS

DOCUMENT = openapi.document()
OPERATIONS = [
    (path, method, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects of a part of the document."""
    if isinstance(node, dict):
        yield node
        node = node.values()
    elif not isinstance(node, list | tuple):
        return
    for each in node:
        yield from nodes(each)


def test_every_reference_leads_somewhere() -> None:
    references = {node["$ref"] for node in nodes(DOCUMENT) if "$ref" in node}
    assert references
    for reference in references:
        found = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        assert found


def test_every_component_is_used() -> None:
    references = {node["$ref"] for node in nodes(DOCUMENT) if "$ref" in node}
    made = {f"#/components/{kind}/{name}" for kind, names in DOCUMENT["components"].items() for name in names}
    assert made - references == {"#/components/headers/Allow"}  # of OPTIONS and 405, which are not repeated


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(names) == len(set(names))


def test_the_methods_below_xrpc() -> None:
    assert {path.removeprefix(PREFIX) for path, _, _ in OPERATIONS if path.startswith(PREFIX)} == METHODS
    assert {method for path, method, _ in OPERATIONS if ARCHIVE.get(path.removeprefix(PREFIX)) == "POST"} == {
        "post"
    }


@pytest.mark.parametrize(
    ("path", "table"),
    [
        ("/subscribe", SUBSCRIBE),
        ("/v1/subscribe", SUBSCRIBE),
        ("/events", EVENT_STREAM),
        ("/explain", EXPLAIN),
        ("/gaps", GAPS),
        ("/xrpc/network.bsky.jetstream.subscribeEvents", SUBSCRIBE_EVENTS),
    ],
)
def test_every_endpoint_has_its_parameters(path: str, table: Any) -> None:
    parameters = DOCUMENT["paths"][path]["get"]["parameters"]
    assert [each["name"] for each in parameters if each["in"] == "query"] == [each.name for each in table]


@pytest.mark.parametrize("metrics", [True, False])
def test_the_page_is_the_document(metrics: bool) -> None:
    response = openapi.page("v1", metrics=metrics)(Request("GET", "/openapi.json", "", 1, {}))
    assert response.body is not None
    read = json.loads(response.body)
    assert ("/metrics" in read["paths"]) == metrics
    assert read == json.loads(json.dumps(openapi.document("v1", metrics=metrics)))
