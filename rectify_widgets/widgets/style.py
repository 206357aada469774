"""The look of the widgets: one style sheet for light and dark themes.  Imports nothing.

Colours of text, lines and surfaces are the theme's own (JupyterLab's custom properties, with
fallbacks for front ends without them).  Two colours carry meaning, each always beside a word or a
sign: blue for what the model was, orange for what counts now.
"""

from __future__ import annotations

STYLE = """<style>
.rw-panel, .rw-static {
  --rw-ink: var(--jp-ui-font-color1, currentColor);
  --rw-soft: var(--jp-ui-font-color2, #767676);
  --rw-line: var(--jp-border-color2, #8884);
  --rw-fill: var(--jp-layout-color2, #8881);
  --rw-blue: #3b78b0;
  --rw-orange: #d55e00;
  --rw-mono: var(--jp-code-font-family, ui-monospace, Menlo, Consolas, monospace);
  color: var(--rw-ink);
  font-family: var(--jp-ui-font-family, system-ui, sans-serif);
  font-size: 13px;
  line-height: 1.45;
}
.rw-panel .widget-html, .rw-panel .widget-html-content { line-height: 1.45; font-size: 13px; }
.rw-panel > .rw-style { display: none; }
.rw-card { border: 1px solid var(--rw-line); border-radius: 6px; padding: 12px 14px; }
.rw-title { font-size: 17px; font-weight: 600; letter-spacing: -0.01em; color: var(--rw-ink); }
.rw-head { font-size: 13px; font-weight: 600; color: var(--rw-ink); }
.rw-soft { color: var(--rw-soft); font-size: 12px; }
.rw-num { font-variant-numeric: tabular-nums; font-size: 11px; color: var(--rw-soft); }
.rw-panel code, .rw-static code { font-family: var(--rw-mono); font-size: 12px;
  background: none !important; color: inherit; padding: 0 !important; }
.rw-panel table.rw-table, .rw-static table.rw-table { border-collapse: collapse; margin: 0;
  width: 100%; font-size: 12px; color: var(--rw-ink); border: none; table-layout: auto; }
.rw-table tr, .rw-table td, .rw-table th { background: none !important; border: none; }
.rw-table th { color: var(--rw-soft); font-weight: 500; text-align: left !important;
  padding: 3px 10px 3px 0;
  border-bottom: 1px solid var(--rw-line); white-space: nowrap; vertical-align: bottom; }
.rw-table td { padding: 3px 10px 3px 0; text-align: left !important; vertical-align: middle; }
.rw-static table { margin-left: 0 !important; }
.rw-static thead, .rw-panel thead { border: none !important; }
.rw-table .rw-right.rw-right { text-align: right !important; font-variant-numeric: tabular-nums; white-space: nowrap; }
.rw-table tr.rw-off td { color: var(--rw-soft); }
.rw-table tr.rw-pick td { font-weight: 600; }
.rw-table td.rw-probability { white-space: nowrap; font-variant-numeric: tabular-nums; }
.rw-panel table.rw-predictions { table-layout: fixed; }
.rw-predictions td { padding-right: 6px; }
.rw-predictions td:first-child, .rw-predictions th:first-child { width: 27%; }
.rw-track { display: inline-block; width: 40px; height: 8px; border-radius: 2px; margin-right: 7px;
  background: var(--rw-fill); vertical-align: middle; line-height: 0; font-size: 0; }
.rw-verdict { margin: 10px 0 2px; }
.rw-cards { gap: 12px; padding: 2px 0; }
.rw-static > div { margin-bottom: 12px; }
.rw-static .rw-columns { display: flex; flex-wrap: wrap; gap: 12px 28px; }
.rw-static .rw-columns > div { flex: 0 1 auto; min-width: 270px; }
.rw-gap { margin-top: 12px; }
.rw-panel .widget-label { text-align: left; }
.rw-maps { border-collapse: separate; border-spacing: 0; font-size: 12px; }
.rw-panel table.rw-maps { width: 100%; table-layout: fixed; }
.rw-panel table.rw-maps, .rw-static table.rw-maps { margin: 0; border: none; color: var(--rw-ink); }
.rw-maps tr, .rw-maps td, .rw-maps th { background: none !important; border: none !important; }
.rw-maps th { font-weight: 500; color: var(--rw-soft); text-align: left !important;
  padding: 0 10px 6px 0;
  vertical-align: middle; }
.rw-maps th:first-child { width: 46px; }
.rw-maps td { padding: 0 10px 8px 0; text-align: left !important; vertical-align: top; }
.rw-maps img { border-radius: 4px; display: block; margin: 0 0 2px; }
.rw-panel .rw-maps img { width: 100%; height: auto; max-width: 190px; }
.rw-static .rw-maps img { max-width: none; }
.rw-maps br { display: none; }
.rw-legend { display: flex; gap: 6px; align-items: center; white-space: nowrap; }
.rw-legend img { border-radius: 2px; margin: 0; }
.rw-status { min-height: 19px; font-variant-numeric: tabular-nums; }
.rw-error { border-left: 3px solid var(--rw-orange); padding: 4px 0 4px 10px; }
.rw-bars-head { display: grid; grid-template-columns: var(--rw-names) 1fr 5em; column-gap: 10px;
  font: 12px var(--rw-mono); color: var(--rw-soft); padding: 0 8px 3px 11px;
  border-bottom: 1px solid var(--rw-line); }
.rw-bars-head span { font-family: var(--jp-ui-font-family, system-ui, sans-serif);
  white-space: nowrap; }
.rw-bars-head span:last-child { text-align: right; }
.rw-rows { overflow-y: auto; overflow-x: hidden; }
.rw-rows .jupyter-button.rw-row { display: grid; grid-template-columns: var(--rw-names) 1fr 5em;
  column-gap: 10px; align-items: center; width: 100%; height: 24px; line-height: 24px; flex: none;
  margin: 0; padding: 0 8px; border: none; border-left: 3px solid transparent; border-radius: 0;
  background: none; box-shadow: none; color: var(--rw-ink); text-align: left;
  font-family: var(--rw-mono); font-size: 12px; white-space: pre; }
.rw-rows .jupyter-button.rw-row::before { content: ""; order: 1; height: 10px; border-radius: 2px;
  background: linear-gradient(to right, transparent var(--a, 0%), var(--c, var(--rw-blue))
    var(--a, 0%), var(--c, var(--rw-blue)) var(--b, 0%), transparent var(--b, 0%)), var(--rw-fill);
  }
.rw-rows .jupyter-button.rw-row::after { content: var(--s, "–"); order: 2; text-align: right;
  font-variant-numeric: tabular-nums; }
.rw-rows .jupyter-button.rw-row:hover { background: var(--rw-fill); }
.rw-rows .jupyter-button.rw-row:focus-visible { outline: 2px solid var(--rw-blue);
  outline-offset: -2px; }
.rw-rows .jupyter-button.rw-row.rw-chosen { border-left-color: var(--rw-orange);
  background: var(--rw-fill); font-weight: 600; }
.rw-progress { --jp-widgets-progress-thickness: 6px; }
.rw-progress .progress { border-radius: 3px; overflow: hidden; background: var(--rw-fill);
  height: 6px; margin-top: 11px; }
.rw-progress .progress-bar { background: var(--rw-blue); height: 6px; }
.rw-panel .jupyter-button.rw-action { font-size: 13px; border-radius: 4px; }
.rw-panel details, .rw-static details { margin-top: 4px; font-size: 12px; color: var(--rw-soft); }
.rw-panel summary, .rw-static summary { cursor: pointer; }
</style>"""
