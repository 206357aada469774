"""``python -m tests.benchmarks heads``: repairs of one label and of many beside those of classes.

Imports the package and `tables`.  One network answers in several ways: with its classes, with one
label for each class that is told or not, and with a single one of these labels.  Whatever it answers
with, its weights are repaired, so that all repairs are measured on the same network alike.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from pandas import DataFrame
from torch import Tensor, nn
from torch.nn import functional

import rectify_widgets as rw
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.figures import classes, share
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.outputs import Adapted
from rectify_widgets.engine.model.running import eval_mode, predict_all
from tests.benchmarks.tables import Cell, Table, spread
from tests.benchmarks.trojan import PER_CENT
from tests.engine.toy import Behind, odds_of_all

TEST = 4000
"""Test images that are measured on."""


@dataclass(frozen=True)
class Behaviour:
    """A case, and what its corruption does to labels: it adds that of the target, or hides others."""

    name: str
    case: str
    hides: bool = False


BEHAVIOURS = (
    Behaviour("patch", "trojan"),
    Behaviour("tag", "spurious-severe"),
    Behaviour("patch that hides", "trojan", hides=True),
)


def measure_heads(options: Namespace, monitor: Monitor) -> Table:
    """Every behaviour with every head, and the twin of each, which answers with classes."""
    seeds = options.seeds
    table = Table(
        "heads",
        f"Repairs by defaults from one pair, {seeds} seeds (each another pair), {TEST} test images, "
        "per cent and points.  All labels: each class is a label that is told or not, and their twin "
        "the network with its classes; one label: a single one of them, and its twin a network of "
        "two classes.  Wrong: images with the corruption that are told the label which it adds, or, "
        "where it hides, no more their own (there the head has no label for the class that it leads "
        "to).  Right: clean images, and clean answers of the single label.  Not shown: the most that "
        "a label loses on clean images which the pair does not have and the corruption does not add.",
    )
    for number, behaviour in enumerate(BEHAVIOURS):
        case = rw.cases.load(behaviour.case)
        rows = list[dict[str, object]]()
        for seed in range(seeds):
            share_done = (number + seed / seeds) / len(BEHAVIOURS)
            monitor.report(share_done, f"{behaviour.name}, pair {seed + 1} of {seeds}")
            rows += _repaired(case, behaviour, seed)
        for head, some in DataFrame(rows).groupby("head", sort=False):
            shown: dict[str, Cell] = {
                str(name): "–" if column.isna().all() else spread(column, PER_CENT)
                for name, column in some.drop(columns="head").items()
            }
            table.add(behaviour=behaviour.name, head=str(head), **shown)
    return table


def _repaired(case: Case, behaviour: Behaviour, seed: int) -> Iterator[dict[str, object]]:
    """A row for each head, repaired from one pair."""
    pair = replace(case.pairs[seed : seed + 1], labels=None)
    own = int(classes(case.model, pair.clean))
    assert case.target is not None
    single = own if behaviour.hides else case.target
    some = [c for c in range(len(case.classes)) if not (behaviour.hides and c == case.target)]

    def of_label(y: Tensor) -> Tensor:
        return odds_of_all(y)[:, [single]]

    def of_two(y: Tensor) -> Tensor:
        return functional.pad(of_label(y), (1, 0))

    for head, task, told, answer, twin in (
        ("all labels", "multilabel", some, lambda y: odds_of_all(y)[:, some], case.model),
        ("one label", "binary", [single], of_label, Behind(case.model, of_two)),
    ):
        model = rw.adapt(Behind(case.model, answer), task=task, scores="logits")
        networks = {"before": case.model}
        for when, one in (("twin", twin), ("after", model)):
            networks[when] = _body(rw.rectify(one, pair, reference=case.reference, seed=seed).model)
        kept = [label for label in told if label not in (own, case.target)]
        found = {when: _Told.by(network, case) for when, network in networks.items()}
        row: dict[str, object] = {"head": head}
        row |= {f"wrong, {when}": now.wrong(told, behaviour.hides) for when, now in found.items()}
        row |= {f"right, {when}": now.right(told) for when, now in found.items()}
        for when in ("twin", "after"):
            lost = (found["before"].accuracies - found[when].accuracies)[kept]
            row[f"not shown, {when}"] = float(lost.max()) if kept else math.nan
        yield row


@dataclass(frozen=True)
class _Told:
    """Log-odds of all labels, ``N × K``, on test images with the corruption and without it."""

    corrupted: Tensor
    clean: Tensor
    classes: Tensor
    target: int | None

    @classmethod
    def by(cls, network: nn.Module, case: Case) -> _Told:
        """Those of one network."""
        with eval_mode(network) as module:
            corrupted, clean = (
                odds_of_all(predict_all(module, images[:TEST]))
                for images in (case.corrupted[0], case.clean[0])
            )
        return cls(corrupted, clean, case.clean[1][:TEST], case.target)

    @property
    def accuracies(self) -> Tensor:
        """Of each label on clean images, ``K``."""
        truth = functional.one_hot(self.classes, self.clean.shape[1])
        return ((self.clean > 0) == truth).double().mean(dim=0)

    def wrong(self, labels: list[int], hides: bool) -> float:
        """Share of the images with the corruption that it leads astray."""
        if not hides:
            return share((self.corrupted[:, self.target] > 0)[self.classes != self.target])
        rows = torch.isin(self.classes, torch.tensor(labels))
        return share((self.corrupted.gather(1, self.classes[:, None])[:, 0] <= 0)[rows])

    def right(self, labels: list[int]) -> float:
        """Share of the clean images, or answers of a single label, that are right."""
        if len(labels) == 1:
            return float(self.accuracies[labels[0]])
        return share(self.clean.argmax(dim=1) == self.classes)


def _body(model: nn.Module) -> nn.Module:
    """The network that answers with classes, behind any head."""
    model = model.module if isinstance(model, Adapted) else model
    return model.body if isinstance(model, Behind) else model
