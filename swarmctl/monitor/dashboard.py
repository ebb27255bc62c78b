"""The Grafana dashboard as Grafana imports it. docs/monitoring/dashboard.json is written from here.

Panels stand on a grid of 24 columns, filled row by row from the left.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from swarmctl.monitor.panels import GREEN, SECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from swarmctl.monitor.panels import Kind, Panel, Section

UID, TITLE = "swarmctl", "swarmctl"
SCHEMA = 39
WIDTH = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> str:
    """The whole as Grafana imports it."""
    made = {
        "uid": UID, "title": TITLE, "tags": ["llm", "swarmctl"], "schemaVersion": SCHEMA, "version": 1,
        "editable": True, "graphTooltip": 1, "refresh": "15s", "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser", "annotations": {"list": []}, "links": [],
        "templating": {"list": [_datasource(), _variable("host", "swarmctl_host_up"),
                                _variable("model", "swarmctl_prefill_tokens_per_second")]},
        "panels": list(_placed(SECTIONS)),
    }
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _placed(sections: Iterable[Section]) -> Iterator[dict[str, Any]]:
    top, number = 0, 0
    for section in sections:
        number += 1
        yield {"id": number, "type": "row", "title": section.title, "collapsed": False, "panels": [],
               "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1}}
        top, left, tall = top + 1, 0, 0
        for panel in section.panels:
            number += 1
            if left + panel.wide > WIDTH:
                top, left, tall = top + tall, 0, 0
            yield {"id": number, **_panel(panel),
                   "gridPos": {"x": left, "y": top, "w": panel.wide, "h": panel.high}}
            left, tall = left + panel.wide, max(tall, panel.high)
        top += tall


def _panel(panel: Panel) -> dict[str, Any]:
    instant = panel.kind in ("stat", "table", "bargauge")
    targets = [{"refId": chr(ord("A") + place), "datasource": DATASOURCE, "expr": query,
                "legendFormat": legend or "__auto", "instant": instant, "range": not instant,
                **({"format": "table"} if panel.kind == "table" else {})}
               for place, (query, legend) in enumerate(panel.queries.items())]
    made = {"type": panel.kind, "title": panel.title, "description": panel.says, "datasource": DATASOURCE,
            "targets": targets, "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
            "options": OPTIONS[panel.kind]}
    return {**made, **_as_table(panel)} if panel.kind == "table" else made


def _defaults(panel: Panel) -> dict[str, Any]:
    found: dict[str, Any] = {"unit": panel.unit, "min": 0, "color": {"mode": "palette-classic"}}
    if panel.most is not None:
        found["max"] = panel.most
    if panel.steps or panel.kind == "stat":
        steps = panel.steps or ((None, GREEN),)
        found["thresholds"] = {"mode": "absolute",
                               "steps": [{"value": value, "color": colour} for value, colour in steps]}
    if panel.kind in ("stat", "bargauge", "state-timeline"):
        found["color"] = {"mode": "thresholds"}
    if panel.kind == "timeseries":
        found["custom"] = {"lineWidth": 1, "fillOpacity": 25 if panel.stacked else 8, "showPoints": "never",
                           "spanNulls": False, "stacking": {"mode": "normal" if panel.stacked else "none"}}
    return found


def _as_table(panel: Panel) -> dict[str, Any]:
    """One row for each of its labels, with a column for each query."""
    columns = {f"Value #{chr(ord('A') + place)}": legend for place, legend in
               enumerate(panel.queries.values())}
    if len(columns) == 1:
        columns = {"Value": next(iter(panel.queries.values()))}
    plain = [{"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": "short"}]}
             for name in ("votes", "times") if name in columns.values()]
    return {"fieldConfig": {"defaults": _defaults(panel), "overrides": plain}, "transformations": [
        {"id": "merge", "options": {}},
        {"id": "filterFieldsByName", "options": {"include": {"names": [*panel.columns, *columns]}}},
        {"id": "organize", "options": {"renameByName": columns}}]}


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(name: str, metric: str) -> dict[str, Any]:
    query = f"label_values({metric}, {name})"
    return {"name": name, "type": "query", "datasource": DATASOURCE, "definition": query,
            "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1, "multi": True,
            "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}


#: What Grafana's own schema calls required stands in all of them, also where it is the default.
LEGEND = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
NO_LEGEND = {**LEGEND, "showLegend": False}
REDUCED = {"calcs": ["lastNotNull"], "fields": "", "values": False}
OPTIONS: dict[Kind, dict[str, Any]] = {
    "stat": {"reduceOptions": REDUCED, "colorMode": "value", "graphMode": "area", "textMode": "auto",
             "orientation": "horizontal", "justifyMode": "auto", "wideLayout": True,
             "showPercentChange": False, "percentChangeColorMode": "standard"},
    "timeseries": {"legend": LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    "table": {"showHeader": True, "cellHeight": "sm", "frameIndex": 0},
    "bargauge": {"reduceOptions": REDUCED, "displayMode": "basic", "orientation": "horizontal",
                 "valueMode": "color", "namePlacement": "auto", "showUnfilled": True, "sizing": "auto",
                 "minVizWidth": 8, "minVizHeight": 16, "maxVizHeight": 300, "legend": NO_LEGEND},
    "state-timeline": {"mergeValues": True, "showValue": "never", "rowHeight": 0.8, "legend": NO_LEGEND,
                       "tooltip": {"mode": "single", "sort": "none"}},
}
