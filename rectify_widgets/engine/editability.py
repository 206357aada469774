"""`Localization`: the editability of every layer, as numbers, a table, a frame and a figure.

Imports nothing at module level; matplotlib and pandas are imported by the two methods that hand out
a figure and a frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Localization:
    """Editability of every layer.

    Attributes:
        scores: layer name to score, best first.  For ``"edit-attribution"`` and ``"trial"`` the
            share of the gap that the layer's edit closes (0.8 reads "80 % of the gap"); for
            ``"projection"`` a number without a unit.
        method: how it was scored.
        choices: for each layer the edit direction and the ridge of its best edit.
        completeness: for each layer the relative error with which attributions add up to the gap;
            large where the layer does not cut every path from input to output.
        refused: layers that cannot be edited, with the reason.
        order: scored layers in network order.
        kinds: what each layer is, for people.
    """

    scores: Mapping[str, float]
    method: str
    choices: Mapping[str, tuple[str, float]]
    completeness: Mapping[str, float]
    refused: Mapping[str, str]
    order: tuple[str, ...]
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """The most editable layer."""
        return next(iter(self.scores))

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each scored layer, best first."""
        return [
            {
                "rank": rank,
                "layer": name,
                "kind": self.kinds.get(name, ""),
                "score": score,
                "direction": self.choices[name][0] if name in self.choices else "",
                "ridge": self.choices[name][1] if name in self.choices else float("nan"),
                "completeness_error": self.completeness.get(name, float("nan")),
            }
            for rank, (name, score) in enumerate(self.scores.items(), start=1)
        ]

    def __repr__(self) -> str:
        return (
            f"Localization({self.method!r}, {len(self.scores)} layers, best {self.best!r} "
            f"with {self.scores[self.best]:.3g})"
        )

    def __str__(self) -> str:
        width = max(len("layer"), *(len(name) for name in self.scores))
        head = (
            f"{'rank':>4}  {'layer':<{width}}  {'score':>9}  {'direction':<9} {'ridge':>6}  "
            f"{'completeness error':>18}"
        )
        lines = [head]
        lines += [
            f"{row['rank']:>4}  {row['layer']:<{width}}  {row['score']:>9.3g}  "
            f"{row['direction']:<9} {row['ridge']:>6g}  {row['completeness_error']:>18.0%}"
            for row in self.rows()
        ]
        lines += [
            f"   –  {name:<{width}}  not editable: {why}" for name, why in self.refused.items()
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        top = max((abs(score) for score in self.scores.values()), default=0.0) or 1.0
        body = ""
        for row in self.rows():
            length = max(0.0, row["score"]) / top * 100
            body += (
                f"<tr><td style='text-align:right'>{row['rank']}</td>"
                f"<td style='text-align:left'><code>{escape(row['layer'])}</code></td>"
                f"<td style='text-align:left'>{escape(row['kind'])}</td>"
                "<td style='text-align:left;width:12em'><div title='score' "
                f"style='background:#3b78b0;height:.8em;width:{length:.0f}%'></div></td>"
                f"<td style='text-align:right'>{row['score']:.3g}</td>"
                f"<td style='text-align:left'>{row['direction']}</td>"
                f"<td style='text-align:right'>{row['ridge']:g}</td></tr>"
            )
        for name, why in self.refused.items():
            body += (
                f"<tr><td>–</td><td style='text-align:left'><code>{escape(name)}</code></td>"
                f"<td colspan='5' style='text-align:left'>not editable: {escape(why)}</td></tr>"
            )
        heads = "".join(
            f"<th>{head}</th>"
            for head in ("rank", "layer", "kind", "", "score", "direction", "ridge")
        )
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"

    def to_frame(self) -> Any:
        """The rows as a pandas ``DataFrame``, best first (needs pandas)."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas") from error
        return pd.DataFrame(self.rows()).set_index("layer")

    def plot(self) -> Figure:
        """Bar chart of the scores in network order, the best layer marked with a star."""
        from matplotlib.figure import Figure

        names = list(self.order)
        figure = Figure(figsize=(6.4, 0.6 + 0.26 * len(names)), layout="constrained")
        axes = figure.subplots()
        values = [self.scores[name] for name in names]
        axes.barh(names, values, color=["#d55e00" if n == self.best else "#3b78b0" for n in names])
        axes.axvline(0, color="#888888", linewidth=0.8)
        for row, (name, value) in enumerate(zip(names, values, strict=True)):
            star = " ★" if name == self.best else ""
            axes.text(max(value, 0), row, f" {value:.2g}{star}", va="center", color="#888888")
        axes.invert_yaxis()
        axes.set_xlabel(f"editability ({self.method})", color="#888888")
        axes.tick_params(colors="#888888")
        axes.spines[:].set_visible(False)
        axes.margins(x=0.12)
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        return figure
