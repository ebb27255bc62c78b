"""An evaluation's JSON as pages that a person reads: Markdown, and HTML with its plot drawn in it. Pure."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from swarmctl.learning.markdown import cell

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Report = Mapping[str, Any]

DECIDED = {"promote": "The new release is better: promote it.",
           "rollback": "The new release is worse: it should not be served.",
           "keep": "There is no clear difference: the old one stays."}
LABELS = {"references": "against reference answers ({measure})", "exact": "exactly the reference",
          "capability": "capability set"}
WIDTH, LEFT, ROW = 640, 230, 34
STYLE = ("body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
         "table{border-collapse:collapse}td,th{padding:.3em .8em;border-bottom:1px solid #ddd;"
         "text-align:left;vertical-align:top}pre{white-space:pre-wrap;margin:0}.verdict{font-size:1.2em;font-weight:600}"
         ".promote{color:#1a7f37}.rollback{color:#b42318}.keep{color:#7a5d00}svg text{font-size:13px}")


def markdown(report: Report) -> str:
    """The report as Markdown, which also reads well in a terminal."""
    lines = [f"# {report['model']}: {report['new']['name']} against {report['old']['name']}", "",
             f"**{DECIDED[report['decision']]}**", "", *(f"- {reason}" for reason in report["reasons"]), "",
             f"Asked {report['at']}, {_style(report['style'])}. Weights: {report['old']['digest'][:12]} and "
             f"{report['new']['digest'][:12]}.", "",
             "| measure | old | new | difference | 95 % interval | prompts (groups) |",
             "|---|---:|---:|---:|---:|---:|", *_measured(report), ""]
    lines += [*_ballots(report), *_others(report), *_shown(report)]
    return "\n".join(lines).rstrip() + "\n"


def page(report: Report) -> str:
    """The report as one HTML file that loads nothing."""
    title = f"{report['model']}: {report['new']['name']} against {report['old']['name']}"
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report["reasons"])
    rows = "".join(f"<tr>{''.join(f'<td>{escape(one)}</td>' for one in _cells(line))}</tr>"
                   for line in _measured(report))
    head = "".join(f"<th>{name}</th>" for name in
                   ("measure", "old", "new", "difference", "95 % interval", "prompts (groups)"))
    more = "".join(f"<p>{escape(line)}</p>" for line in (*_ballots(report), *_others(report)) if line)
    examples = "".join(_example(example) for example in report["examples"])
    return (f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
            f"<style>{STYLE}</style><h1>{escape(title)}</h1>"
            f"<p class=\"verdict {report['decision']}\">{DECIDED[report['decision']]}</p><ul>{reasons}</ul>"
            f"{plot(report)}<table><tr>{head}</tr>{rows}</table>{more}"
            f"<p>Asked {escape(report['at'])}, {escape(_style(report['style']))}.</p>"
            + (f"<h2>Where they differ</h2><table><tr><th>prompt</th><th>reference</th><th>old</th><th>new"
               f"</th></tr>{examples}</table>" if examples else "") + "</html>\n")


def plot(report: Report) -> str:
    """Differences and their intervals, as SVG: right of the line is better."""
    rows = [(name, row) for name, row in _rows(report)]
    if not rows:
        return ""
    reach = max(0.05, *(max(abs(row["low"]), abs(row["high"])) for _, row in rows))
    height = ROW * len(rows) + 30
    middle = _x(0.0, reach)
    drawn = "".join(_bar(name, row, index, reach) for index, (name, row) in enumerate(rows))
    axis = "".join(f'<text x="{_x(at, reach):.0f}" y="{height - 6}" text-anchor="middle">{at:+.0%}</text>'
                   for at in (-reach, 0.0, reach))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" role="img" '
            f'aria-label="differences with intervals"><line x1="{middle:.0f}" x2="{middle:.0f}" y1="0" '
            f'y2="{height - 22}" stroke="#999" stroke-dasharray="3"/>{drawn}{axis}</svg>')


def _bar(name: str, row: Mapping[str, float], index: int, reach: float) -> str:
    y = ROW * index + ROW / 2
    low, high, mean = (_x(row[key], reach) for key in ("low", "high", "mean"))
    colour = "#1a7f37" if row["low"] > 0 else "#b42318" if row["high"] < 0 else "#666"
    return (f'<text x="0" y="{y + 4:.0f}">{escape(name)}</text>'
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>'
            f'<circle cx="{mean:.1f}" cy="{y}" r="5" fill="{colour}"/>')


def _x(value: float, reach: float) -> float:
    return LEFT + (WIDTH - LEFT - 30) * (value / reach + 1) / 2


def _rows(report: Report) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, label in LABELS.items():
        row = report["measures"][key]
        if row is not None and not (key == "exact" and report["measure"] == "exact"):
            yield label.format(measure=report["measure"]), row


def _measured(report: Report) -> list[str]:
    return [f"| {name} | {row['old']:.1%} | {row['new']:.1%} | {row['mean']:+.1%} "
            f"| {row['low']:+.1%} to {row['high']:+.1%} | {row['prompts']} ({row['groups']}) |"
            for name, row in _rows(report)]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _ballots(report: Report) -> list[str]:
    found = []
    for key, who in (("votes", "People's blind votes"), ("judge", "Judge model")):
        row = report["measures"][key]
        if row and row["wins"] + row["losses"] + row["ties"]:
            name = f" {row['model']}" if key == "judge" else ""
            found += [f"{who}{name}: {row['wins']} for the new one, {row['losses']} for the old one, "
                      f"{row['ties']} ties; evidence {max(row['better'], row['worse']):.3g} to 1.", ""]
    return found


def _others(report: Report) -> list[str]:
    speed, unfinished, served = report["speed"], report["unfinished"], report["served"]
    found = []
    if speed["old"] and speed["new"]:
        found += [f"Speed while decoding: {speed['old']:,.0f} and {speed['new']:,.0f} tokens a second.", ""]
    if any(unfinished.values()):
        found += [f"Answers that did not end by themselves: {unfinished['old']} of the old one, "
                  f"{unfinished['new']} of the new one; they count as wrong.", ""]
    if served:
        said = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                         for key, value in served.items() if isinstance(value, int | float | str))
        found += [f"Quantised against full precision: {said}.", ""] if said else []
    return found


def _style(style: Mapping[str, Any]) -> str:
    heat = style["temperature"]
    how = "at the server's own temperature" if heat is None else f"at temperature {heat:g}"
    return f"{how}, {style['samples']} answer(s) a prompt, at most {style['max_tokens']} tokens"


def _shown(report: Report) -> list[str]:
    if not report["examples"]:
        return []
    lines = ["## Where they differ", "", "| prompt | reference | old | new |", "|---|---|---|---|"]
    for one in report["examples"]:
        cells = (one["prompt"], one["reference"] or "", one["old"], one["new"])
        lines.append("| " + " | ".join(cell(one) for one in cells) + " |")
    return [*lines, ""]


def _example(one: Mapping[str, Any]) -> str:
    return "<tr>" + "".join(f"<td><pre>{escape(one[key] or '')}</pre></td>"
                            for key in ("prompt", "reference", "old", "new")) + "</tr>"
