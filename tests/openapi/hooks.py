"""What schemathesis is told about this server (`SCHEMATHESIS_HOOKS`)."""

from __future__ import annotations

from typing import Any

import schemathesis

# A replay that ends at once.
NO_EVENTS = {"cursor": "0", "until": "1"}
# Longer lists and texts are left to tests/unit: in a URL, they would be megabytes.
LONG = 1_000


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Remove limits that take a long request to exceed."""
    remove_limits(raw_schema)


def remove_limits(node: Any) -> None:
    """Remove them from a part of the document."""
    if isinstance(node, dict):
        for key in ("maxItems", "maxLength"):
            if isinstance(node.get(key), int) and node[key] > LONG:
                del node[key]
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            remove_limits(each)


@schemathesis.hook
def filter_query(context: Any, query: dict[str, Any] | None) -> bool:
    """Leave out empty values: a schema does not say that they mean the same as no value."""
    return not query or "" not in query.values()


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Give an event stream an end, unless it is tested how these parameters are refused."""
    if case.path == "/events":
        bad = mutated(case)
        case.query = (case.query or {}) | {name: end for name, end in NO_EVENTS.items() if name not in bad}


def mutated(case: Any) -> set[str]:
    """Return the parameters that were made bad on purpose."""
    if case.meta is None or not case.meta.generation.mode.is_negative:
        return set()
    data = case.meta.phase.data
    return {data.parameter, *(mutation.parameter for mutation in data.mutations)}
