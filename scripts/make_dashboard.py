"""Make the Grafana dashboard, deploy/grafana/dashboards/jetstream.json, from the table of panels below.

Run it with `make dashboard` after a change of this table. A test compares the file with it, and the names of
metrics with the code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

FILE: Final = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "dashboards" / "jetstream.json"
DATASOURCE: Final = {"type": "prometheus", "uid": "prometheus"}
ROW_HEIGHT: Final = 8
COLUMNS: Final = 24  # the width of a dashboard, in units of Grafana
FEW: Final = 8  # stat panels in one line


class Panel(NamedTuple):
    """One panel: its title, the unit of Grafana, and each query by its legend."""

    title: str
    unit: str
    queries: dict[str, str]
    description: str = ""


def rate(metric: str, *by: str) -> str:
    """Return a query for the rate of a counter, by labels."""
    return f"sum by ({', '.join(by)}) (rate({metric}{{{SELECTED}}}[$__rate_interval]))"


def quantile(part: float, metric: str) -> str:
    """Return a query for a quantile of a histogram."""
    return f"histogram_quantile({part}, {rate(f'{metric}_bucket', 'le')})"


def gauge(metric: str, *more: str) -> str:
    """Return a selector of a gauge."""
    return f"{metric}{{{', '.join([SELECTED, *more])}}}"


SELECTED: Final = 'job="jetstream", instance=~"$instance"'

AT_A_GLANCE: Final = [
    Panel("Events in", "cps", {"": rate("jetstream_events_total", "job")}),
    Panel("Messages out", "cps", {"": rate("jetstream_messages_sent_total", "job")}),
    Panel("Subscribers", "short", {"": f"sum({gauge('jetstream_subscribers')})"}),
    Panel("Behind upstream", "s", {"": f"max({gauge('jetstream_upstream_lag_seconds')})"}),
    Panel("Log", "bytes", {"": f"sum({gauge('jetstream_log_bytes')})"}),
    Panel(
        "Kept",
        "s",
        {"": f"max(time() - {gauge('jetstream_log_oldest_us')} / 1e6)"},
        "Age of the oldest event that a client can have.",
    ),
    Panel("Writable", "bool", {"": f"min({gauge('jetstream_log_writable')})"}),
    Panel(
        "Conditions", "short", {"": f"sum({gauge('jetstream_condition')})"}, "GET /health has the reasons."
    ),
]

SECTIONS: Final = {
    "Upstream": [
        Panel(
            "Frames",
            "cps",
            {"{{upstream}} {{type}}": rate("jetstream_upstream_frames_total", "upstream", "type")},
        ),
        Panel(
            "Lag",
            "s",
            {"{{upstream}}": gauge("jetstream_upstream_lag_seconds")},
            "Age of the last message when it arrived.",
        ),
        Panel("State", "short", {"{{upstream}} {{state}}": gauge("jetstream_upstream_state") + " == 1"}),
        Panel(
            "Connections lost, gaps and floods",
            "cps",
            {
                "{{upstream}} reconnects": rate("jetstream_upstream_reconnects_total", "upstream"),
                "{{upstream}} gaps": rate("jetstream_upstream_gaps_total", "upstream"),
                "{{upstream}} floods": rate("jetstream_upstream_floods_total", "upstream"),
            },
        ),
        Panel(
            "Left out, by reason",
            "cps",
            {"{{reason}}": rate("jetstream_dropped_total", "reason") + " > 0 or vector(0)"},
            "docs/metrics.md explains the reasons. `repeat` is normal.",
        ),
        Panel("Events by kind", "cps", {"{{kind}}": rate("jetstream_events_total", "kind")}),
    ],
    "Subscribers": [
        Panel(
            "Connected, by wire", "short", {"{{wire}}": f"sum by (wire) ({gauge('jetstream_subscribers')})"}
        ),
        Panel("Messages out", "cps", {"{{wire}}": rate("jetstream_messages_sent_total", "wire")}),
        Panel("Bytes out", "Bps", {"{{wire}}": rate("jetstream_bytes_sent_total", "wire")}),
        Panel(
            "From a frame to its readers",
            "s",
            {
                "p50": quantile(0.5, "jetstream_delivery_seconds"),
                "p99": quantile(0.99, "jetstream_delivery_seconds"),
            },
            "Of events that are delivered live.",
        ),
        Panel(
            "Disconnected, by reason",
            "cps",
            {"{{reason}}": rate("jetstream_disconnects_total", "reason")},
            "`slow` and `overtaken` are readers that lagged.",
        ),
        Panel(
            "Refused, by reason",
            "cps",
            {
                "{{reason}}": rate("jetstream_refused_total", "reason"),
                "bad request: {{reason}}": rate("jetstream_bad_requests_total", "reason") + " > 0",
            },
        ),
        Panel(
            "Behind the newest event",
            "short",
            {"{{how}}": f"sum by (how) ({gauge('jetstream_subscribers_behind')})"},
            "`lagging` read too slowly; `catching_up` began at an older position.",
        ),
        Panel(
            "Lag of subscribers, p99",
            "s",
            {
                "p99": "histogram_quantile(0.99, sum by (le) ("
                + gauge("jetstream_subscriber_lag_seconds_bucket")
                + "))"
            },
        ),
    ],
    "Log and machine": [
        Panel(
            "Size of the log",
            "bytes",
            {
                "{{instance}}": gauge("jetstream_log_bytes"),
                "{{instance}} write-ahead log": gauge("jetstream_log_wal_bytes"),
                "{{instance}} free disk": gauge("jetstream_disk_free_bytes"),
            },
        ),
        Panel("Events kept", "short", {"{{instance}}": gauge("jetstream_log_events")}),
        Panel(
            "Delay of the event loop",
            "s",
            {
                "p50": quantile(0.5, "jetstream_loop_delay_seconds"),
                "p99": quantile(0.99, "jetstream_loop_delay_seconds"),
            },
        ),
        Panel(
            "CPU",
            "percentunit",
            {"{{instance}}": f"rate(process_cpu_seconds_total{{{SELECTED}}}[$__rate_interval])"},
            "1 is one core.",
        ),
        Panel("Memory", "bytes", {"{{instance}}": gauge("process_resident_memory_bytes")}),
        Panel(
            "Open files",
            "short",
            {
                "{{instance}}": gauge("process_open_fds"),
                "{{instance}} limit": gauge("process_max_fds"),
            },
        ),
    ],
    "Faults": [
        Panel(
            "Conditions",
            "short",
            {"{{condition}}": f"max by (condition) ({gauge('jetstream_condition')})"},
            "1 while /health gives this reason.",
        ),
        Panel(
            "Failures",
            "cps",
            {
                "commits": rate("jetstream_log_write_failures_total", "job"),
                "own errors: {{doing}}": rate("jetstream_internal_errors_total", "doing"),
            },
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    panels = [_stat(panel, column) for column, panel in enumerate(AT_A_GLANCE)]
    top = ROW_HEIGHT // 2
    for title, section in SECTIONS.items():
        panels.append({"type": "row", "title": title, "gridPos": _place(0, top, COLUMNS, 1), "panels": []})
        panels += [_chart(panel, place, top + 1) for place, panel in enumerate(section)]
        top += 1 + ROW_HEIGHT * (-(-len(section) // 3))
    for number, each in enumerate(panels, 1):
        each["id"] = number
    return {
        "uid": "jetstream",
        "title": "Jetstream",
        "tags": ["atproto"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_instances()]},
        "panels": panels,
    }


def _instances() -> dict[str, Any]:
    """Return the variable that chooses servers."""
    return {
        "name": "instance",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": 'label_values(up{job="jetstream"}, instance)', "refId": "instances"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _stat(panel: Panel, column: int) -> dict[str, Any]:
    width = COLUMNS // FEW
    options = {"colorMode": "none", "graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"]}}
    return _panel("stat", panel, _place(column * width, 0, width, ROW_HEIGHT // 2)) | {"options": options}


def _chart(panel: Panel, place: int, top: int) -> dict[str, Any]:
    width = COLUMNS // 3
    row, column = divmod(place, 3)
    options = {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    where = _place(column * width, top + row * ROW_HEIGHT, width, ROW_HEIGHT)
    return _panel("timeseries", panel, where) | {"options": options}


def _panel(kind: str, panel: Panel, where: dict[str, int]) -> dict[str, Any]:
    return {
        "type": kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": where,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "expr": query, "legendFormat": legend}
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _place(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")
