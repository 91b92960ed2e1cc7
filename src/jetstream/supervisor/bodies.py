"""What `/health`, `/ready`, `/status.json` and `/subscribers.json` say of several processes. Pure.

The ingest knows the log and upstream, the edges know subscribers. So a body is that of the ingest, in
which the figures of subscribers are sums over the edges. Where nothing can be added, the worst one is
shown: the highest delay, and each reason that any process has.

`view` gives the bodies that processes gave last, in the form that a server of one process answers with.
So clients and dashboards read the same fields, whatever `--edges` is. What a single process cannot say,
`processes` and the history of all, `view` adds itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from jetstream.status import Check
from jetstream.supervisor.families import Family, by_label

# A body that was read from JSON, or a part of one.
Body = Mapping[str, Any]

# The two checks that only the supervisor can make: a process that is not there says nothing.
_DOWN: Final = Check(
    "ingest_down",
    "the process that reads upstream has ended, and is being replaced",
    "wait some seconds; the log says why it has ended",
)
_NO_EDGE: Final = Check(
    "no_edge",
    "no process that serves subscribers is ready",
    "wait some seconds; the log says why they have ended",
)
# Reasons in one answer. Each process may have some of its own, and there may be many edges.
_REASONS_MAX: Final = 50
# The names of what `figures_of` returns, in the order of `processes` in `/status.json`.
_OF_PROCESS: Final = ("cpu", "rss_bytes", "subscribers", "events_per_s", "messages_per_s", "lag_s")


def not_ready(
    ingest: Sequence[Any] | None, edges: Sequence[Sequence[Any]], *, stopping: bool
) -> list[dict[str, str]]:
    """Return why no client should be sent to the server; empty if one can be.

    Each process gives its own reasons, as `Check` has them; None: the ingest is not there. One edge that is
    ready is enough. If none is, the reasons of the first one are shown: edges mostly have the same.
    """
    if stopping:
        stop = Check("stopping", "the server is stopping", "connect to another server, or try again later")
        return [stop._asdict()]
    reasons = [_DOWN._asdict()] if ingest is None else list(ingest)
    if not edges:
        return [*reasons, _NO_EDGE._asdict()]
    # Whether the ingest is there is known here: an edge learns it some seconds later.
    known = {"writer_gone", *(each["check"] for each in reasons)}
    more = [[each for each in one if each["check"] not in known] for one in edges]
    return [*reasons, *(more[0] if all(more) else ())]


def health(ingest: Body, edges: Sequence[Body], more_reasons: Sequence[str]) -> dict[str, Any]:
    """Return the body of `/health`. `more_reasons` are those of the supervisor.

    The word is that of the ingest, which alone writes the log. But it is not `ok` while any process has
    a reason. A reason that several processes give is shown once, and the reasons of the supervisor come
    first.
    """
    reasons = list(more_reasons)
    for body in (ingest, *edges):
        reasons += [each for each in body["reasons"] if each not in reasons]
    word = ingest["status"]
    if word == "ok" and reasons:
        word = "degraded"
    return {
        **ingest,
        "status": word,
        "reasons": reasons[:_REASONS_MAX],
        "subscribers": sum(each["subscribers"] for each in edges),
    }


def status(
    ingest: Body,
    edges: Sequence[Body],
    families: Mapping[str, Family],
    supervisor: Body,
) -> dict[str, Any]:
    """Return the body of `/status.json`. `supervisor` has the fields that it knows itself.

    `families` are those of `/metrics` of all processes together. Totals are taken from them, because
    they keep what processes had that have ended. Rates are sums of what runs now. What is not named
    here is the ingest's.
    """
    every = (ingest, *edges)
    return {
        **ingest,
        "reasons": _distinct(each for body in every for each in body["reasons"]),
        "events": {**ingest["events"], "total": _total(families, "jetstream_events", "kind")},
        "log": {**ingest["log"], "written_bytes_per_s": _sum(every, "log", "written_bytes_per_s")},
        "subscribers": _subscribers(ingest, edges),
        "out": {
            "messages_per_s": _sum(edges, "out", "messages_per_s"),
            "bytes_per_s": _sum(edges, "out", "bytes_per_s"),
            "messages_total": _total(families, "jetstream_messages_sent", "wire"),
            "bytes_total": _total(families, "jetstream_bytes_sent", "wire"),
        },
        "drops": by_label(families, "jetstream_dropped", "reason"),
        "disconnects": by_label(families, "jetstream_disconnects", "reason"),
        "refused": by_label(families, "jetstream_refused", "reason"),
        "loop_delay_ms": _highest(every, "loop_delay_ms"),
        "delivery_ms": _highest(edges, "delivery_ms"),
        "process": {name: _sum(every, "process", name) for name in ingest["process"]},
        **supervisor,
    }


def _subscribers(ingest: Body, edges: Sequence[Body]) -> dict[str, Any]:
    """Return the part `subscribers`: sums over the edges, and the limit of all of them.

    Without an edge, the names of wires and compressions are left out, and the limit is the one that the
    ingest was given.
    """
    counts = {name: _sum(edges, "subscribers", name) or 0 for name in ("total", "catching_up", "lagging")}
    groups = {name: _added(edges, "subscribers", name) for name in ("by_wire", "by_compression")}
    most = max((each["subscribers"]["max"] for each in edges), default=ingest["subscribers"]["max"])
    return {**ingest["subscribers"], **counts, **groups, "max": most}


def figures_of(status: Body | None) -> dict[str, Any]:
    """Return the figures of one process in `processes`, by its own status; None: it is not known.

    The lag is that of an edge behind the log, and of the ingest behind the upstream that is least behind.
    """
    if status is None:
        return dict.fromkeys(_OF_PROCESS, None)
    lags = [each["lag_s"] for each in status["upstreams"] if each["lag_s"] is not None]
    return {
        "cpu": status["process"]["cpu"],
        "rss_bytes": status["process"]["rss_bytes"],
        "subscribers": status["subscribers"]["total"],
        "events_per_s": status["events"]["per_s"],
        "messages_per_s": status["out"]["messages_per_s"],
        "lag_s": min(lags, default=None) if status["edge"] is None else status["edge"]["lag_s"],
    }


def _total(families: Mapping[str, Family], name: str, label: str) -> int:
    """Return a whole number: the sum over all values of a label. 0: there is no such family."""
    return int(sum(by_label(families, name, label).values()))


def _sum(bodies: Iterable[Body], part: str, name: str) -> Any:
    """Return the sum of a figure where it is known; None where it is not known at all."""
    values = [each[part][name] for each in bodies]
    known = [value for value in values if value is not None]
    return round(sum(known), 3) if known else None


def _added(bodies: Iterable[Body], part: str, name: str) -> dict[str, int]:
    """Return the counts of a part by name, added up; a name that only one process has is kept."""
    found: dict[str, int] = {}
    for body in bodies:
        for key, value in body[part][name].items():
            found[key] = found.get(key, 0) + value
    return found


def _highest(bodies: Iterable[Body], part: str) -> dict[str, float | None]:
    """Return the highest of each quantile: that of the process that is worst off.

    Quantiles of several processes cannot be added. None: no process has observed anything.
    """
    found: dict[str, float | None] = {}
    for body in bodies:
        for name, value in body[part].items():
            found[name] = max((each for each in (found.get(name), value) if each is not None), default=None)
    return found


def _distinct(items: Iterable[Any]) -> list[Any]:
    """Return the items without those that are equal to an earlier one, at most `_REASONS_MAX` of them."""
    found: list[Any] = []
    for each in items:
        if each not in found:
            found.append(each)
    return found[:_REASONS_MAX]


def listed(pages: Iterable[Body], most: int) -> dict[str, Any]:
    """Return a page of the subscribers of all edges, by ID, of one page of each edge.

    `most` is the limit that the client gave, which each edge was given, too. Every ID of the page of an
    edge is above the position that was asked for. So the lowest `most` of all pages are a page of the
    whole, and `next` is the ID after which the next one begins; None: there are no more.

    Each process has a range of IDs of its own (`setup.IDS_PER_PROCESS`). The order is by process, then
    by age.
    """
    pages = list(pages)
    rows = sorted((row for page in pages for row in page["subscribers"]), key=lambda row: row["id"])
    shown = rows[:most]
    more = len(rows) > most or any(page["next"] is not None for page in pages)
    return {
        "total": sum(page["total"] for page in pages),
        "next": shown[-1]["id"] if more and shown else None,
        "subscribers": shown,
    }


def kicked(answers: Sequence[Body]) -> dict[str, Any]:
    """Return what all edges have disconnected, and the IDs that none of them knows.

    An ID is of one edge alone, so the others do not know it. Raises TypeError without an answer.
    """
    unknown = set.intersection(*(set(each["unknown_ids"]) for each in answers))
    return {"kicked": sum(each["kicked"] for each in answers), "unknown_ids": sorted(unknown)}
