"""docs/api.md against the source: every parameter, header field, close code and endpoint, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence

import pytest
from tests.unit.test_docs import DOCS, SOURCE, section

from jetstream.metrics import CLOSE_REASONS
from jetstream.web.openapi import document
from jetstream.web.openapi_parts import HEADERS
from jetstream.web.parameter_table import EVENT_STREAM, SUBSCRIBE, SUBSCRIBE_EVENTS, Parameter
from jetstream.web.parameters import _OPTIONS
from jetstream.web.subscribe_events_parameters import _ELSEWHERE

# Without examples.
API = re.sub(r"^```.*?^```$", "", (DOCS / "api.md").read_text(), flags=re.DOTALL | re.MULTILINE)
# Modules that describe header fields instead of sending or reading them.
DESCRIBING = {"openapi.py", "openapi_parts.py", "front_page.py"}
# Of every response of HTTP/1.1: OpenAPI leaves them out.
OF_HTTP = {"Connection", "Content-Length", "Content-Type", "Date", "Transfer-Encoding"}
OF_OPTIONS = {"Access-Control-Allow-Methods", "Access-Control-Allow-Headers", "Access-Control-Max-Age"}
# How a client has gone: no code is sent.
GONE = {(1000, "client"), (1006, "lost")}
FIELD = re.compile(r"[A-Z][A-Za-z]*(?:-[A-Z][A-Za-z]*)*")
LINE = re.compile(rf"^({FIELD.pattern}): ", re.MULTILINE)
Table = Sequence[Parameter]


def trees(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """Parse the modules of packages. Yields each with its name."""
    for folder in folders:
        for module in sorted((SOURCE / folder).rglob("*.py")):
            yield module.name, ast.parse(module.read_text())


def rows(text: str, title: str) -> list[list[str]]:
    """Return the cells of the first table of a text whose head begins with a title."""
    found = re.search(rf"^\| {title} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found is not None, title
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in found[1].splitlines()]


def named(cells: Iterable[str]) -> set[str]:
    """Return the names in backticks."""
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def heads(text: str, title: str) -> set[str]:
    """Return the names in the first column of a table."""
    return named(row[0] for row in rows(text, title))


def names(table: Table) -> set[str]:
    return {each.name for each in table}


# Parameters


def test_the_parameters_of_subscribe() -> None:
    assert heads(section(API, "Subscribing"), "parameter") == names(SUBSCRIBE)


def test_the_parameters_of_subscribe_events() -> None:
    described = heads(section(API, "subscribeEvents: the v2 wire"), "parameter")
    assert described == names(SUBSCRIBE_EVENTS) | {"compress", "Socket-Encoding", *_ELSEWHERE}


def test_the_parameters_that_event_streams_refuse() -> None:
    assert names(SUBSCRIBE) - names(EVENT_STREAM) <= named([section(API, "Event streams")])


def test_the_options_that_can_change() -> None:
    text = section(API, "Subscribing").partition("### Changing the options")[2].partition("###")[0]
    assert set(_OPTIONS) - {"maxSize"} <= named([text])


# Endpoints


def test_the_endpoints() -> None:
    archive = section(API, "subscribeEvents: the v2 wire").partition("### Other methods")[2]
    nsids = {f"/xrpc/network.bsky.jetstream.{name}" for name in named([archive])}
    described = heads(section(API, "Endpoints"), "path")
    paths = set(document()["paths"])
    assert described <= paths
    assert paths <= described | nsids


# Header fields


def keys(tree: ast.Module) -> Iterator[str]:
    """Return what may be the name of a header field: keys of dictionaries, and of assignments to them."""
    for node in ast.walk(tree):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.Dict):
            found = [*node.keys]
        elif isinstance(node, ast.Subscript):
            found = [node.slice]
        for each in found:
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                yield each.value


def lines(tree: ast.Module) -> Iterator[str]:
    """Return the constants of bytes: parts of responses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes):
            yield node.value.decode("latin-1").replace("\r", "")


def sent_fields() -> set[str]:
    """Return the header fields that `web/` sends."""
    fields = set()
    for name, tree in trees("web"):
        if name not in DESCRIBING:
            fields |= {key for key in keys(tree) if re.fullmatch(r"[A-Z][A-Za-z]*(?:-[A-Z][A-Za-z]*)*", key)}
            fields |= {
                name for text in lines(tree) for name in re.findall(r"^([A-Z][\w-]+): ", text, re.MULTILINE)
            }
    return fields


def read_fields() -> set[str]:
    """Return the header fields that `web/` reads, in lower case."""
    return {
        each.value
        for _, tree in trees("web")
        for node in ast.walk(tree)
        for each in looked_for(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    }


def looked_for(node: ast.AST) -> Sequence[ast.expr]:
    """Return the name of the header field that a node looks for, if it is a constant."""
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called.endswith((".tokens", "headers.get")):
            return node.args[:1]
        return node.args[1:2] if called == "_first" else ()
    if isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]).endswith("headers"):
        return [node.left]
    return ()


def test_the_fields_of_responses() -> None:
    text = section(API, "Endpoints").partition("Of responses:")[2]
    assert heads(text, "field") == sent_fields()


def test_the_fields_of_requests() -> None:
    text = section(API, "Endpoints").partition("Of requests:")[2].partition("Of responses:")[0]
    described = named(row[0] for row in rows(text, "field")) | {"Transfer-Encoding"}
    assert {field.lower() for field in described} == read_fields()


def test_the_document_has_the_same_fields() -> None:
    assert set(HEADERS) == sent_fields() - OF_HTTP - OF_OPTIONS


# Closes


def closes() -> set[tuple[int, str]]:
    """Return the code and the label of each `Close` that is made."""
    nodes = [node for _, tree in trees("web", "delivery") for node in ast.walk(tree)]
    made = {close for node in nodes if (close := of(node))}
    labels = {
        ast.unparse(node.target): close[1]
        for node in nodes
        if isinstance(node, ast.AnnAssign) and (close := of(node.value))
    }
    return made | {(code, labels[name]) for node in nodes for code, name in recoded(node)}


def recoded(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the code and the name of a constant that is used with another code."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "_replace":
        for each in node.keywords:
            if each.arg == "code":
                yield ast.literal_eval(each.value), ast.unparse(node.func.value)


def of(node: ast.AST | None) -> tuple[int, str] | None:
    """Return the code and the label of a call of `Close`; None for any other node."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Close"):
        return None
    code, label = map(ast.literal_eval, node.args[:2])  # ValueError for what is not in the source
    return code, label


def test_the_closes() -> None:
    table = rows(section(API, "Subscribing").partition("### Closing")[2], "code")
    described = [(int(code), label.strip("`")) for code, label, _ in table]
    assert sorted(described) == sorted(closes() - GONE)


def test_every_close_is_counted() -> None:
    assert {label for _, label in closes()} == set(CLOSE_REASONS)


@pytest.mark.parametrize("word", ["Close(1003, 'x', 'y')", "Close(code, 'x', 'y')"])
def test_a_close_whose_code_is_not_in_the_source_is_noticed(word: str) -> None:
    node = ast.parse(word).body[0]
    assert isinstance(node, ast.Expr)
    if "code" in word:
        with pytest.raises(ValueError, match="malformed"):
            of(node.value)
    else:
        assert of(node.value) == (1003, "x")
