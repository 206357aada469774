"""The comparison as one page of HTML that needs nothing else.  Imports this folder."""

from __future__ import annotations

from html import escape
from pathlib import Path

from tests.benchmarks.plan import EVERY, GROUPS, METHODS, OWN, PEERS, pools
from tests.benchmarks.plots import against_loss, against_n
from tests.benchmarks.summary import Results, tables
from tests.benchmarks.tables import Cell, Table
from tests.benchmarks.targets import target_table
from tests.benchmarks.verdicts import (
    HEADLINES,
    LEAKAGE,
    TROJAN,
    WINS,
    behaviour,
    headline,
    scale,
    tally,
)

MARKS = {
    **dict(zip(OWN, ("D", "S", "F", "E", "C", "T"), strict=True)),
    **{method: str(number) for number, method in enumerate(PEERS, 1)},
}
SIGNS = {"yes": "✓ yes", "no": "✗ no"}

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d0d7de;
  --ground: #ffffff; --card: #f6f8fa; --own: #0550ae; --static: #953800; --bad: #a40e26; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --line: #3d444d;
  --ground: #0d1117; --card: #161b22; --own: #79c0ff; --static: #ffa657; --bad: #ff9492; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  margin: 0 auto; padding: 1rem; max-width: 1500px; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.5rem; }
p { max-width: 80ch; } .rw-soft { color: var(--soft); }
.rw-scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { padding: 3px 8px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th { background: var(--card); } .rw-word, .rw-long { text-align: left; }
td.rw-long { white-space: normal; min-width: 16rem; }
td.rw-wrap { white-space: normal; min-width: 9rem; }
tr.rw-own td { font-weight: 600; } tr.rw-no td.rw-met { color: var(--bad); font-weight: 600; }
.rw-charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .5rem; background: var(--card); border-radius: 6px; }
figcaption { font-size: 13px; color: var(--soft); }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--ink); font-size: 12px; }
svg .rw-grid { stroke: var(--line); } svg .rw-before { stroke: var(--ink); stroke-dasharray: 6 4; }
svg .rw-tie { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 1.2; }
svg polyline.rw-peer { stroke: var(--soft); } svg circle.rw-peer { fill: var(--soft); }
svg polyline.rw-own { stroke: var(--own); stroke-width: 3; } svg circle.rw-own { fill: var(--own); }
svg polyline.rw-static { stroke: var(--static); stroke-width: 2; stroke-dasharray: 2 3; }
svg circle.rw-static { fill: var(--static); }
svg text.rw-own { fill: var(--own); font-weight: 700; } svg text.rw-static { fill: var(--static); }
svg g circle { fill: var(--ground); stroke: var(--soft); }
svg g.rw-own circle { fill: var(--own); stroke: var(--own); }
svg g.rw-static circle { stroke: var(--static); stroke-width: 2; }
svg text.rw-mark { font-size: 11px; } svg g.rw-own text.rw-mark { fill: var(--ground); }
"""

WORDS = {"case", "pairs", "method", "target", "chosen", "met"}
LONG = {"remark", "what"}
WRAPPED = {"target", "measured"}
"""Columns whose few long cells would push the verdict beside them out of view."""
LAST = ("seconds", "tuning_s", "peak_MB")
"""Columns that stand behind the remark here, where a narrow window may hide them."""


def write(results: Results, folder: Path) -> list[Table]:
    """Write every table as Markdown and CSV, and ``report.html``; answers the tables."""
    made = [*tables(results), target_table(results)]
    for table in made:
        table.save(folder)
    (folder / "report.html").write_text(page(results, made), encoding="utf-8")
    return made


def page(results: Results, made: list[Table]) -> str:
    """The whole report."""
    *groups, goals = made
    body = "".join(_section(results, table) for table in groups)
    compared = _tally(results)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Rectification compared</title><style>{STYLE}</style></head><body><main>"
        "<h1>Rectification compared</h1>"
        f"<p>Networks: {escape(results.source)}.  Every figure is a mean ± standard deviation over "
        "seeds, on the test set, which no method has seen.  Peers are re-implementations, tuned on "
        f"the validation split.  {escape(compared)}</p>"
        f"<h2>Targets</h2><p>{_prose(goals.note)}</p>{_html(goals)}{body}</main></body></html>\n"
    )


def _tally(results: Results) -> str:
    """How often `dynamic` wins over all that was measured."""
    rivals = {OWN[1], *PEERS}
    counts = tally(text for (*_, method), text in results.comparisons.items() if method in rivals)
    if not counts:
        return ""
    parts = ", ".join(f"{verdict}: {count}" for verdict, count in counts.items())
    return (
        f"Against static and the peers, at the same n, over {sum(counts.values())} rows: {parts}."
    )


def _section(results: Results, table: Table) -> str:
    charts = "".join(
        _charts(results, case, pool) for case in GROUPS.get(table.name, ()) for pool in pools(case)
    )
    return f"<h2>{escape(table.name)}</h2><p>{_prose(table.note)}</p>{charts}{_html(table)}"


def _charts(results: Results, case: str, pool: str) -> str:
    """Both charts of a case, under its name; nothing where nothing was measured."""
    runs = results.repairs.query("case == @case and pool == @pool").dropna(subset="lost")
    if runs.empty:
        return ""
    kind, before = behaviour(case), results.before[case]
    name, unit = HEADLINES[kind], "" if kind == LEAKAGE else " %"
    points = runs.groupby(["method", "n"])[["lost", "headline"]].mean().reset_index()
    points[["lost", "headline"]] *= [100.0, scale(case)]
    start = scale(case) * headline(case, before, before)
    shown = set(points["method"])
    legend = ", ".join(f"{MARKS[method]} {method}" for method in METHODS if method in shown)
    floor = ", not below the clean target rate" if kind == TROJAN else ""
    title = case if pool == EVERY else f"{case}, pairs of {pool}"
    return (
        f'<h3>{escape(title)}</h3><div class="rw-charts"><figure>'
        f"{against_n(points, name, unit, start)}<figcaption>{escape(name)} by number of pairs, "
        f"lower is better; square-root scale{floor}.</figcaption></figure>"
        f"<figure>{against_loss(points, MARKS, name, unit, start)}<figcaption>{escape(legend)}; "
        "one mark for each n, lower left is better.</figcaption></figure></div>"
    )


def _html(table: Table) -> str:
    """A table, its rows marked by what they say."""
    names = sorted(table.rows[0] if table.rows else [], key=LAST.__contains__)
    head = "".join(f'<th{_kind(name)} scope="col">{escape(name)}</th>' for name in names)
    body = ""
    for row in table.rows:
        mark = " class='rw-own'" if row.get("method") == OWN[0] else ""
        if row.get("met") == "no":
            mark = " class='rw-no'"
        cells = "".join(f"<td{_kind(name)}>{_cell(name, row[name])}</td>" for name in names)
        body += f"<tr{mark}>{cells}</tr>"
    return (
        f'<div class="rw-scroll" tabindex="0" role="region" aria-label="table {escape(table.name)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _kind(name: str) -> str:
    if name == "met":
        return ' class="rw-word rw-met"'
    if name in LONG:
        return ' class="rw-long"'
    kinds = [kind for kind, some in (("rw-word", WORDS), ("rw-wrap", WRAPPED)) if name in some]
    return f' class="{" ".join(kinds)}"' if kinds else ""


def _cell(name: str, cell: Cell) -> str:
    text = str(cell)
    if name == "met":
        text = SIGNS.get(text, text)
    if name == "remark" and text.startswith(WINS):
        text = f"✓ {text}"
    return escape(text)


def _prose(note: str) -> str:
    """A note with its paragraphs."""
    return escape(note).replace("\n\n", "</p><p class='rw-soft'>").replace("`", "")
