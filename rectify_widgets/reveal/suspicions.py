"""What a search for unreliable behaviours found.  Imports torch and the engine; matplotlib in `plot`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor

from rectify_widgets.engine.base.tables import frame, html_table
from rectify_widgets.engine.data.pairs import SamplePairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS = ("rank", "class", "pull", "95 %", "others", "carriers", "healthy", "kind", "accused")


@dataclass(frozen=True, eq=False, repr=False)
class Suspicion:
    """Something on the references that may decide more than it should.

    Attributes:
        target: class that it pulls other inputs to.
        pull: share (0..1) of other references that it turns to ``target``.
        interval: 95 % Wilson interval of ``pull``.
        others: how many references ``pull`` was measured on; none of them chose the suspicion.
        inputs: ``K`` row numbers of the references that carry it, ascending.
        mask: boolean ``K × H × W``, where each of them carries it; ``0 × H × W`` where no region
            is known.
        kind: what was looked for; ``"region"`` for the transplant test, ``"cluster"`` for
            references that look like others, ``"change"`` where clean references were changed and
            none carries it.
        healthy: share (0..1) of healthy networks, as far as measured, in which one as strong turns
            up.
        accused: whether it is stronger than what healthy networks show.
        pairs: carriers and their cleansed counterparts, for `rectify`; None where not accused.

    Example:
        >>> (suspicion,) = rw.reveal(model, torch.cat([reference, pairs.corrupted])).accused
        >>> suspicion
        Suspicion(class 0: region on 6 references turns 100% of 64 others, accused)
        >>> suspicion.inputs
        tensor([ 96,  97,  98,  99, 100, 101])
    """

    target: int
    pull: float
    interval: tuple[float, float]
    others: int
    inputs: Tensor
    mask: Tensor
    kind: str
    healthy: float
    accused: bool
    pairs: SamplePairs | None

    def __repr__(self) -> str:
        return (
            f"Suspicion(class {self.target}: {self.kind} on {len(self.inputs)} references turns "
            f"{self.pull:.0%} of {self.others} others{', accused' if self.accused else ''})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Suspicions(Sequence[Suspicion]):
    """Result of `reveal`: suspicions, the strongest first.

    Attributes:
        found: all of them, those too weak to accuse a network included.
        searched: number of references.
        classes: class names by number, or empty.

    Example:
        >>> found = rw.reveal(model, torch.cat([reference, pairs.corrupted]))
        >>> len(found.accused), found[0].target
        (1, 0)
    """

    found: tuple[Suspicion, ...]
    searched: int
    classes: tuple[str, ...] = ()

    @property
    def accused(self) -> tuple[Suspicion, ...]:
        """Those that are stronger than what healthy networks show."""
        return tuple(one for one in self.found if one.accused)

    @property
    def verdict(self) -> str:
        """One sentence for people."""
        count = len(self.accused)
        if not count:
            weaker = f"; {len(self.found)} weaker ones are listed" if self.found else ""
            return (
                f"Nothing found on {self.searched} references that healthy networks do not show "
                f"as well{weaker}."
            )
        return f"{count} found on {self.searched} references, stronger than in healthy networks."

    def __len__(self) -> int:
        return len(self.found)

    @overload
    def __getitem__(self, index: int) -> Suspicion: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Suspicion, ...]: ...
    def __getitem__(self, index: int | slice) -> Suspicion | tuple[Suspicion, ...]:
        """One by rank, or several."""
        return self.found[index]

    def __iter__(self) -> Iterator[Suspicion]:
        return iter(self.found)

    def __repr__(self) -> str:
        lines = [self.verdict]
        if self.found:
            table = [HEADS, *self._texts()]
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            lines += [
                "  ".join(
                    cell.ljust(width) for cell, width in zip(row, widths, strict=True)
                ).rstrip()
                for row in table
            ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [[escape(cell) for cell in row] for row in self._texts()]
        table = html_table(rows, HEADS, "rlrrrrrll") if rows else ""
        return f"<p>{escape(self.verdict)}</p>{table}"

    def to_frame(self) -> Any:
        """A pandas ``DataFrame`` with a row for each suspicion.

        Raises:
            ImportError: pandas is not installed.
        """
        columns = ("target", "pull", "low", "high", "others", "carriers", "healthy", "kind",
                   "accused")  # fmt: skip
        rows = [
            (one.target, one.pull, *one.interval, one.others, len(one.inputs), one.healthy,
             one.kind, one.accused)
            for one in self.found
        ]  # fmt: skip
        return frame([dict(zip(columns, row, strict=True)) for row in rows], columns)

    def plot(self) -> Figure:
        """Pull of each suspicion with its interval; those accused are filled."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6, 1.0 + 0.32 * max(len(self), 1)), layout="constrained")
        axes = figure.subplots()
        for row, one in enumerate(self.found):
            colour = "#d55e00" if one.accused else "#888888"
            axes.plot([100 * end for end in one.interval], [row, row], color=colour)
            axes.plot(
                100 * one.pull, row, "o", color=colour, fillstyle="full" if one.accused else "none"
            )
        names = [f"{self._name(one)}, {len(one.inputs)} carriers" for one in self.found]
        axes.set_yticks(range(len(self)), names)
        axes.invert_yaxis()
        axes.set_xlim(-2, 102)
        axes.set_xlabel("other references turned, %", color="#888888")
        axes.set_title(self.verdict, fontsize=8, color="#888888")
        axes.tick_params(colors="#888888")
        axes.spines[:].set_visible(False)
        figure.patch.set_alpha(0)
        return figure

    def _name(self, one: Suspicion) -> str:
        named = one.target < len(self.classes)
        return f"{one.target} {self.classes[one.target]}" if named else str(one.target)

    def _texts(self) -> list[tuple[str, ...]]:
        return [
            (
                str(rank), self._name(one), f"{100 * one.pull:.0f} %",
                f"{100 * one.interval[0]:.0f} to {100 * one.interval[1]:.0f}", str(one.others),
                str(len(one.inputs)) if one.accused and len(one.inputs) else "–",
                f"{100 * one.healthy:.0f} %", one.kind,
                "yes" if one.accused else "no",
            )
            for rank, one in enumerate(self.found, 1)
        ]  # fmt: skip
