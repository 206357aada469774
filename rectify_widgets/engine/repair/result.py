"""`Rectification`: a repaired copy of a model with the history of its edits.

Imports torch; pandas only where a frame is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_int
from rectify_widgets.engine.base.progress import Cancel, Progress
from rectify_widgets.engine.base.tables import frame, html_table
from rectify_widgets.engine.data.inputs import Labelled
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.edits import Edits, RankOneEdit, save_edits, solver_settings
from rectify_widgets.engine.repair.options import RectifyOptions


@dataclass(frozen=True)
class Evidence:
    """What the diagnosis rests on besides the trials; shares are fractions.

    Shares of the references are of those that edits are judged on, and were not solved for.

    Attributes:
        pairs: how many.
        references: how many were used individually; 0 where none were given.
        shared: whether edits were solved and judged on the same references.
        shown: share of the references whose class the corruption changes, before any edit.
        shown_pairs: share of the pairs whose class it changes.
        unlike: pairs whose clean input the model gives another class than their label.
        classes: how many the model has.
        classes_seen: how many of them it gives at least one of the references.
        suspected: share of the references that looked corrupted, where they were too many to leave
            out; otherwise 0.
        left: share of the references whose class the corruption still changes.
        worst_left: class of which most is left, and that share; None where no class is large enough.
        corruption: what the pairs' corruption was taken to be, in a line; empty without references.
        transferred: whether it was put onto references; otherwise the behaviour is counted on the pairs.
        adversarial: whether no form carries it over, and each reference has a change of its own instead.
        transfer: how far the predictions on references that carry it change, as a share of how far
            those on the pairs do; None where the user gave the function.
        changed: share of the references whose class the edits changed without the corruption.
        worst_changed: class of which most changed, likewise.
    """

    pairs: int
    references: int
    shared: bool
    shown: float
    shown_pairs: float
    unlike: int
    classes: int
    classes_seen: int
    suspected: float
    left: float
    worst_left: tuple[int, float] | None
    changed: float
    worst_changed: tuple[int, float] | None
    corruption: str = ""
    transferred: bool = True
    adversarial: bool = False
    transfer: float | None = None


@dataclass(frozen=True)
class Step:
    """One trial edit, kept or rolled back.  All figures are fractions.

    Attributes:
        round: number of the round, from 1.
        layer, direction, ridge: the edit.
        score: editability of the layer that round.
        gap_before, gap_after: distance between the predictions on corrupted references and the
            original model's on clean ones; ``gap_after`` is None where it was not worth finishing.
        degradation_before, degradation_after: expected (or, with validation data, measured) loss of
            accuracy on clean inputs; None where the trial was broken off.
        worst_class: the same for the class that suffers most.
        accepted: whether the edit was kept.
        reason: why, or why not.
        seconds: what the trial took.
        sufferer: number of the class that suffers most; None where none does.
        refined: whether the edit was made by gradient steps, together with those of other layers.
        gap_without: of a kept edit that was made together with others, the gap with all of them but
            this one; what it contributes is that much more than the gap after the last of them.
        objective: gap plus twice the disturbance on clean inputs, by which trials are compared, the
            least one being the best; None where the trial was broken off, since the gap alone was
            too large, or what some of the clean inputs had shown of the disturbance.

    Example:
        >>> (kept,) = [step for step in result.steps if step.accepted]
        >>> kept.layer, kept.gap_after < 0.1 * kept.gap_before
        ('classifier', True)
    """

    round: int
    layer: str
    score: float
    direction: str
    ridge: float
    gap_before: float
    gap_after: float | None
    degradation_before: float
    degradation_after: float | None
    worst_class: float | None
    accepted: bool
    reason: str
    seconds: float
    sufferer: int | None = None
    refined: bool = False
    gap_without: float | None = None
    objective: float | None = None

    @property
    def settings(self) -> str:
        """How the edit was made, in short: ``"contrast 0.01"``, or ``"joint"``."""
        return solver_settings(self.direction, self.ridge, self.refined)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 3) + 0.0:.3f}"


def _folded(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps one by one, but edits that were made together as one group."""
    groups: list[list[Step]] = []
    for step in steps:
        together = groups and groups[-1][0].gap_without is not None
        if together and step.gap_without is not None and groups[-1][0].round == step.round:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def summary_of(group: Sequence[Step]) -> Step:
    """Edits that were made together as one step; a step alone as it is."""
    first, last = group[0], group[-1]
    if first.gap_without is None:
        return first
    layers = len({step.layer for step in group})
    return replace(
        last,
        layer=f"{layers} layers" if layers > 1 else first.layer,
        gap_before=first.gap_before,
        degradation_before=first.degradation_before,
        reason=f"{len(group)} edits refined together",
    )


def by_layer(group: Sequence[Step]) -> list[tuple[str, int, float]]:
    """Of edits that were made together: each layer, its edits and what they contribute, most first.

    An edit contributes the gap with all but this one minus the gap with all of them; of a layer with
    several edits, these differences are added up.
    """
    final = group[-1].gap_after or 0.0
    layers: dict[str, list[float]] = {}
    for step in group:
        if step.gap_without is not None:
            layers.setdefault(step.layer, []).append(step.gap_without - final)
    found = [(name, len(more), sum(more)) for name, more in layers.items()]
    return sorted(found, key=lambda item: -item[2])


STEP_COLUMNS = tuple(item.name for item in fields(Step))


@dataclass(frozen=True, eq=False)
class Rectification:
    """Result of `rectify`.

    Attributes:
        model: the repaired copy; the model that was passed in is unchanged.
        edits: the kept edits, in order.
        steps: every trial, rejected ones included.
        strategy: ``"dynamic"`` or ``"static"``.
        stopped: why it ended: ``"target"``, ``"layers refined"``, ``"no layer helps"``,
            ``"round limit"`` or ``"cancelled"``.
        gap_before, gap_after: see `Step`.
        degradation: see `Step`, after the last kept edit.
        flagged: rows of the references that carry the corruption and were left out.
        seconds: time by stage: statistics, sweep, solving, evaluation, refining.
        max_degradation, target_gap: as requested; None where that is not known.
        evidence: what the diagnosis rests on besides the steps; None where it was cancelled.
        options: those of the call, its seed among them; None where they are not known.
        diagnosis: short sentences on why the behaviour is still there, with figures and what to try;
            empty where the target was met, unless there was nothing to do.

    Example:
        >>> result = rw.rectify(model, pairs, reference=reference)
        >>> result.model(x_bad[:6]).argmax(dim=1)
        tensor([0, 1, 2, 0, 1, 2])
        >>> result.at(0)(x_bad[:6]).argmax(dim=1)  # before the first edit
        tensor([0, 0, 0, 0, 0, 0])
        >>> result.save("fix.safetensors")
    """

    model: nn.Module
    edits: list[RankOneEdit]
    steps: list[Step]
    strategy: str
    stopped: str
    gap_before: float
    gap_after: float
    degradation: float
    flagged: Tensor
    seconds: Mapping[str, float] = field(default_factory=dict)
    max_degradation: float | None = None
    target_gap: float | None = None
    evidence: Evidence | None = None
    diagnosis: tuple[str, ...] = ()
    options: RectifyOptions | None = None
    writer: ClassVar[Callable[..., Path]]
    """Writes a report; set by the package, since the engine draws nothing."""

    def __repr__(self) -> str:
        return (
            f"Rectification({len(self.edits)} edits in {len(self.steps)} trials, "
            f"gap {self.gap_before:.3f} to {self.gap_after:.3f}, stopped: {self.stopped})"
        )

    def __str__(self) -> str:
        width = max([len("layer"), *(len(step.layer) for step in self.steps)])
        lines = [
            f"round  {'layer':<{width}}  {'edit':<23}  gap             objective  degradation  kept"
        ]
        for group in _folded(self.steps):
            step = summary_of(group)
            figures = step.gap_after, step.objective, step.degradation_after
            after, objective, loss = (f"{_figure(value):>6}" for value in figures)
            lines.append(
                f"{step.round:>5}  {step.layer:<{width}}  {step.settings:<23}  "
                f"{step.gap_before:6.3f} →{after}     {objective}       {loss}  "
                f"{'yes' if step.accepted else 'no'}: {step.reason}"
            )
            layers = by_layer(group)
            lines += [f"       {'':<{width}}  edits  gap without it, added up"][: len(layers)]
            lines += [
                f"       {name:<{width}}  {count:>5}  {more:+6.3f}" for name, count, more in layers
            ]
        lines.append(
            f"stopped: {self.stopped}; gap {self.gap_before:.3f} → {self.gap_after:.3f}, "
            f"degradation {_figure(self.degradation)}, {len(self.edits)} edits kept, "
            f"{len(self.flagged)} references found corrupted"
        )
        return "\n".join([*lines, *(f"- {sentence}" for sentence in self.diagnosis)])

    def _repr_html_(self) -> str:
        rows, tables = [], ""
        for group in _folded(self.steps):
            step = summary_of(group)
            if layers := by_layer(group):
                tables += f"<p>Round {step.round}, edits made together, by layer:</p>" + html_table(
                    [
                        (f"<code>{escape(name)}</code>", str(count), f"{more:+.3f}")
                        for name, count, more in layers
                    ],
                    ("layer", "edits", "gap without it, added up"), "lrr",
                )  # fmt: skip
            cells = (
                str(step.round),
                f"<code>{escape(step.layer)}</code>",
                escape(step.settings),
                f"{step.gap_before:.3f} → {_figure(step.gap_after)}",
                _figure(step.objective),
                _figure(step.degradation_after),
                ("✓ " if step.accepted else "✗ ") + escape(step.reason),
            )
            rows.append([f"<b>{cell}</b>" if step.accepted else cell for cell in cells])
        why = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.diagnosis)
        return (
            html_table(rows, ("round", "layer", "edit", "gap", "objective", "degradation", "kept"))
            + tables
            + f"<p>Stopped: {escape(self.stopped)}; gap {self.gap_before:.3f} → "
            f"{self.gap_after:.3f}, degradation {_figure(self.degradation)}.</p>"
            + (f"<ul>{why}</ul>" if why else "")
        )

    def at(self, step: int) -> nn.Module:
        """A copy of the model as it was after ``step`` kept edits, weights equal to the bit.

        0 is the model as given, ``len(edits)`` the repaired one.  The copy shares nothing with
        `model`, which must still be as `rectify` left it.

        Raises:
            TypeError: ``step`` is not a whole number.
            ValueError: there are not that many edits, or `model` was changed since.
        """
        check_int("step", step, low=0)
        if step > len(self.edits):
            raise ValueError(f"step: got {step}, want 0 to {len(self.edits)}, the edits kept")
        with torch.inference_mode(mode=False):  # what is made inside it cannot be edited
            model = copy.deepcopy(self.model)
        for edit in reversed(self.edits[step:]):
            edit.revert(model)
        return model

    def to_frame(self) -> Any:
        """The steps as a pandas ``DataFrame`` (needs pandas)."""
        return frame([asdict(step) for step in self.steps], STEP_COLUMNS)

    def report(
        self,
        path: str | Path,
        pairs: SamplePairs,
        *,
        clean: Labelled | None = None,
        corrupted: Labelled | None = None,
        target: int | str | None = None,
        groups: object = None,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        title: str = "Repair of an image classifier",
        code: str = "",
        attribution: str = "integrated-gradients",
        shown: int = 4,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> Path:
        """Write one self-contained page for the person who must sign, and the same as JSON beside it.

        What was wrong (pairs, maps, figures with 95 % intervals), what was changed (layers, norms,
        fingerprints of the edits), what it cost (each class, each group), what was not tried, and how
        to reproduce it.  The page asks no other host for anything, prints well, and has a light and
        a dark theme.  Neither `model` nor the inputs are changed.

        Args:
            path: the page, ``.html``; the facts go to the same name with ``.json``.
            pairs: those that the repair was made from.
            clean, corrupted: test inputs and their true labels, see `rectify_widgets.evaluate`; without
                them the page says that the cost was not measured.
            target: class or label that the corruption pulls to, its number or name.
            groups: which group each clean input belongs to, see `rectify_widgets.evaluate`.
            classes: class names, by number.
            mean, std: the normalisation of the inputs, one number a channel, undone for display.
            title: headline of the page.
            code: how the repair was made, in your words; what is known of the call is printed anyway.
            attribution: method of the maps, see `rectify_widgets.attribute`.
            shown: pairs that are shown, the first ones.
            progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

        Returns:
            The path of the page.

        Raises:
            TypeError, ValueError: bad input, or `model` was changed since the repair.
            FileNotFoundError: no such folder.
            Cancelled: ``cancel`` returned True; no file is written.
        """
        return type(self).writer(
            self, path, pairs, clean=clean, corrupted=corrupted, target=target, groups=groups,
            classes=classes, mean=mean, std=std, title=title, code=code, attribution=attribution,
            shown=shown, progress=progress, cancel=cancel,
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the kept edits, a few kilobytes of safetensors, for `load_edits`."""
        save_edits(Edits(self.edits), path)
