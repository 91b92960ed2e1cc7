"""The types of events are those of real ones: by their kind, operation and collection."""

from __future__ import annotations

from typing import Any, cast, get_args

from tests.fixtures import json_lines

from jetstream.client import classic, notices, v1


def records_of(wire: object) -> dict[str, type]:
    """Return the types of records by collection, from the type of commits of a wire."""
    puts = [get_args(each) for each in get_args(wire) if get_args(each)]
    return {get_args(collection)[0]: record for collection, record in puts if get_args(collection)}


def fits(kind: type, value: dict[str, Any]) -> bool:
    """Tell whether an object has the keys of its type, and no others."""
    required = cast("frozenset[str]", kind.__required_keys__)  # type: ignore[attr-defined]
    return required <= value.keys() <= kind.__annotations__.keys()


def test_captured_events_have_the_keys_of_their_types() -> None:
    """Records of the common lexicons too, as real accounts have written them."""
    kinds = {get_args(kind.__annotations__["kind"])[0]: kind for kind in get_args(v1.Event)}
    bodies = {"identity": notices.IdentityBody, "account": notices.AccountBody}
    known = records_of(v1.Commit)
    for event in json_lines("firehose/events.v1.jsonl"):
        assert fits(kinds[event["kind"]], event)
        if event["kind"] != "commit":
            assert fits(bodies[event["kind"]], event[event["kind"]])
            continue
        commit = event["commit"]
        assert fits(v1.Delete if commit["operation"] == "delete" else v1.Put, commit)
        if "record" in commit and commit["collection"] in known:
            assert fits(known[commit["collection"]], commit["record"]), commit["record"]


def test_both_wires_have_the_types_of_the_same_collections() -> None:
    known = records_of(v1.Commit)
    assert known == records_of(classic.Commit)
    for collection, record in known.items():
        assert get_args(record.__annotations__["$type"]) == (collection,)
