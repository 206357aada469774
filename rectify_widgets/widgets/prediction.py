"""`PredictionViewer`: what a model predicts for each sample, before and after its edits.

Imports the engine's inspection, the base panel and the renderers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets as ipw
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.checks import check_labels, check_module
from rectify_widgets.engine.inspection import inspecting, predict_all
from rectify_widgets.engine.pairs import SamplePairs
from rectify_widgets.widgets import markup
from rectify_widgets.widgets.base import (
    Panel,
    check_classes,
    check_index,
    check_samples,
    refuse_unknown,
)
from rectify_widgets.widgets.jobs import Job
from rectify_widgets.widgets.session import Session
from rectify_widgets.widgets.stepper import SampleStepper

Probabilities = dict[str, list[Tensor]]
"""Column name to the ``N × classes`` probabilities of each model in turn."""


class PredictionViewer(Panel):
    """Class probabilities of each sample, before and after, and how many are right.

    Args:
        before: a torch module that gives ``N × classes`` scores.
        after: the edited model, or None; it can be set later.
        inputs: `SamplePairs`, or a tensor ``N × C × H × W``.
        labels: ``N`` class numbers; None takes the pairs' labels, or else what ``before``
            predicts for their clean inputs.  Without pairs there is no verdict.
        classes: class names, by number.
        session: share the worker of another widget.

    Raises:
        TypeError, ValueError: an argument that cannot be used, or an unknown one.
    """

    index = traitlets.Int(0)
    """The sample in view, from 0."""

    after = traitlets.Instance(nn.Module, allow_none=True)
    """The edited model, or None."""

    def __init__(
        self,
        before: nn.Module,
        after: nn.Module | None,
        inputs: SamplePairs | Tensor,
        *,
        labels: Tensor | None = None,
        classes: Sequence[str] | None = None,
        session: Session | None = None,
        **unknown: object,
    ) -> None:
        refuse_unknown(type(self), unknown)
        self._before = check_module("before", before)
        self._columns = check_samples("inputs", inputs)
        self._count = len(next(iter(self._columns.values())))
        self._classes = check_classes(classes)
        if labels is None and isinstance(inputs, SamplePairs):
            labels = inputs.labels
        self._labels = (
            check_labels("labels", labels, count=self._count) if labels is not None else None
        )
        self._probabilities: Probabilities = {}
        super().__init__(session)
        with self.building():
            if after is not None:
                self.after = check_module("after", after)
            self._table = ipw.HTML()
            self.samples = SampleStepper(self, self._count)
            self.fill(
                [ipw.HTML(markup.heading("What the model predicts")), self.samples, self._table]
            )
            self.listen(self, self._changed, ["after"])
            self.listen(self, lambda _: self.draw(), ["index"])
            self.refresh()

    @traitlets.validate("index")
    def _check_index(self, proposal: Mapping[str, int]) -> int:
        return check_index(proposal["value"], self._count)

    def _changed(self, _: object) -> None:
        self.refresh()

    def refresh(self) -> Job[Probabilities]:
        """Predict all samples with the current models, and show the one in view."""
        models = [self._before] if self.after is None else [self._before, self.after]

        def work(job: Job[Probabilities]) -> Probabilities:
            found: Probabilities = {name: [] for name in self._columns}
            for model in models:
                with inspecting(model) as module:
                    for name, inputs in self._columns.items():
                        job.check()
                        found[name].append(predict_all(module, inputs).softmax(dim=1).cpu())
            return found

        def show(job: Job[Probabilities]) -> None:
            self._probabilities = job.result()
            if self._labels is None and "Clean" in self._columns:
                self._labels = self._probabilities["Clean"][0].argmax(dim=1)
            self.draw()

        return self.begin(
            work, lane=f"predictions {id(self)}", label="Predictions", short=True, on_done=show
        )

    @property
    def labels(self) -> Tensor | None:
        """``N`` class numbers that the predictions are judged by, once they are known."""
        return self._labels

    def share_right(self, column: str) -> list[float]:
        """Share of the samples of a column that get their label, for each model in turn."""
        if self._labels is None or column not in self._probabilities:
            return []
        labels = self._labels.cpu()
        return [
            float((found.argmax(dim=1) == labels).float().mean())
            for found in self._probabilities[column]
        ]

    def failed(self, job: Job[object]) -> None:
        """Show the failure where the predictions would be."""
        super().failed(job)
        self._table.value = markup.error_box(self.error)

    def draw(self) -> None:
        """Show the probabilities of the sample in view."""
        self._table.value = self._table_html()

    def static_html(self) -> str:
        """The tables of the sample in view."""
        return markup.heading("What the model predicts") + self._table_html()

    def _table_html(self) -> str:
        if not self._probabilities:
            return '<span class="rw-soft">Predicting …</span>'
        label = None if self._labels is None else int(self._labels[self.index])
        pieces = []
        for name, found in self._probabilities.items():
            rows = [probabilities[self.index].tolist() for probabilities in found]
            pieces.append(
                markup.prediction_table(
                    name if name == "Input" else f"{name} input",
                    rows[0],
                    rows[1] if len(rows) > 1 else None,
                    label=label,
                    classes=self._classes,
                )
            )
        if self._count > 1:
            shares = {name: self.share_right(name) for name in self._columns}
            pieces.append(markup.share_table(shares, self._count))
        return "".join(pieces)

    def forget(self) -> None:
        """Let go of the predictions."""
        self._probabilities.clear()
