"""A network without any picture of its flaw: the class that an unusually small change leads to.

Imports the engine, `references`, `shrinking` and `latent`.  After Wang et al. 2019, "Neural Cleanse" (IEEE S&P), in
input space, and Iwahana et al. (arXiv 2511.08944) in the space of the last layer's inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_int
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.running import eval_mode, predict_all, with_head
from rectify_widgets.reveal.latent import LastLayer, shift_sizes
from rectify_widgets.reveal.references import check_classes, check_scores, gather_references
from rectify_widgets.reveal.shrinking import KINDRED_STEPS, Blend, Shrinking, kindred

FEWEST, MOST = 16, 1024
"""References that are needed, and that are used at most."""
CONFIRMED = 12
"""Classes that are searched in input space; with more, those of the smallest shifts."""
UNUSUAL = 0.25
"""Size, relative to the median of the other classes, at which a class is accused ..."""
TURNING = 0.5
"""... if its change turns at least this share of held-out references."""
PAIRS = 20
HEAD = 64
"""References from which the form of the model's answer is guessed."""


@dataclass(frozen=True, eq=False, repr=False)
class SmallestChange:
    """The smallest change found that turns references to one class.

    Attributes:
        target: the class.
        change: the change as an operator on inputs; `Blend.mask` and `Blend.pattern` show it.
        size: pixels that its mask covers.
        relative: ``size`` over the median size of the other classes that were searched.
        index: distance of ``size`` to the median in deviations (median absolute deviation times
            1.4826), positive where it is smaller: the anomaly index of Neural Cleanse.
        turned: share of held-out references of other classes that it turns to ``target``.
        others: how many those are.
        latent: length of the smallest shift of the last layer's inputs, in standard deviations.
        accused: whether ``relative`` and ``turned`` are what healthy networks do not show.
        pairs: references with and without the change, of as many classes as there are, each of
            which it turns; None where it turns none.  The ``corrupt`` of the accused ones, and of the
            first, puts on further changes to the same class, up to four times as large, because the
            trigger itself is seldom the smallest change.

    Example:
        >>> first = rw.smallest_changes(model, reference, steps=60)[0]
        >>> first.target, first.relative < 0.5, first.pairs is None
        (0, True, False)
    """

    target: int
    change: Blend
    size: float
    relative: float
    index: float
    turned: float
    others: int
    latent: float
    accused: bool
    pairs: SamplePairs | None

    def __repr__(self) -> str:
        return (
            f"SmallestChange(class {self.target}: {self.size:.1f} pixels, {self.relative:.2f} of "
            f"the median, turns {self.turned:.0%}{', accused' if self.accused else ''})"
        )


def smallest_changes(
    model: nn.Module,
    reference: Inputs,
    *,
    steps: int = 160,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> list[SmallestChange]:
    """For each class, the smallest change of inputs that turns references of other classes to it.

    A backdoor is a short cut: the change that leads to its target is much smaller than those that
    lead to other classes.  Half of the references are searched on, the other half says what the
    change is worth.  Where the model has more than twelve classes, those with the shortest shifts
    of the last layer's inputs are searched in input space.

    It finds one change for all inputs.  A backdoor that leads each class somewhere else, or whose
    trigger is different on every input, has none, and is not found.

    Args:
        model: the classifier; left as it was.
        reference: unlabelled clean inputs, ``N × C × H × W``, at least 16; up to 1024 are used.
        steps: gradient steps at most, for each class.
        batch_size: references in one step of one class.
        seed: of every random choice.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

    Returns:
        One for each class that was searched in input space, the most unusual first.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: too few references, NaN, or all of one class.
        Cancelled: ``cancel`` returned True.

    Example:
        >>> first, *others = rw.smallest_changes(model, reference, steps=60)
        >>> first
        SmallestChange(class 0: ... pixels, 0... of the median, turns ...%...)
        >>> repaired = rw.rectify(model, first.pairs, reference=reference)
    """
    check_int("steps", steps, low=1)
    check_int("batch_size", batch_size, low=1)
    generator = torch.Generator().manual_seed(check_int("seed", seed, low=0))
    monitor = Monitor(progress, cancel)
    images = gather_references(reference, FEWEST)
    images = images[torch.randperm(len(images), generator=generator)[:MOST].to(images.device)]
    half = len(images) // 2
    with eval_mode(model, "reference") as plain:
        module = with_head(plain, images[:HEAD])
        check_scores(predict_all(module, images[:2]))
        layer = LastLayer.of(module, images, monitor.part(0.0, 0.03))
        predicted = torch.from_numpy(layer.scores.argmax(axis=1))
        check_classes(predicted[:half])
        searched = LastLayer(layer.features[:half], layer.weight, layer.bias)
        latent = shift_sizes(searched, monitor.part(0.03, 0.1))
        targets = sorted(np.argsort(latent)[:CONFIRMED].tolist())
        shrinking = Shrinking(
            module, images[:half], predicted[:half], targets, batch_size, generator
        )
        changes = shrinking.run(steps, monitor.part(0.1, 0.8))
        sizes = np.array([change.size for change in changes])
        found = []
        for number, (target, change) in enumerate(zip(targets, changes, strict=True)):
            monitor.report(0.8 + 0.05 * number / len(targets), f"what turns to class {target}")
            others = torch.nonzero(predicted[half:] != target).flatten() + half
            led = _led(module, images[others], change, target, monitor.silent())
            relative, index = unusual(sizes, number)
            turned = float(led.float().mean()) if len(led) else 0.0
            found.append(
                SmallestChange(
                    target, change, change.size, relative, index, turned, len(led),
                    float(latent[target]),
                    accused=relative <= UNUSUAL and turned >= TURNING,
                    pairs=_pairs(images, predicted, others[led], change),
                )
            )  # fmt: skip
        found.sort(key=lambda one: (not one.accused, one.relative))
        suspected = max(sum(one.accused for one in found), 1)
        for number, one in enumerate(found[:suspected]):
            if one.pairs is not None:
                done, end = (0.85 + 0.15 * part / suspected for part in (number, number + 1))
                corrupt = kindred(
                    module, images[:half], predicted[:half], one.target, one.change,
                    min(steps, KINDRED_STEPS), generator, monitor.part(done, end),
                )  # fmt: skip
                found[number] = replace(one, pairs=replace(one.pairs, corrupt=corrupt))
    monitor.report(1.0, f"{len(targets)} classes searched")
    return found


def unusual(sizes: np.ndarray, number: int) -> tuple[float, float]:
    """One size relative to the median of the others, and its anomaly index in Neural Cleanse."""
    others = np.delete(sizes, number)
    median = float(np.median(sizes))
    deviation = 1.4826 * float(np.median(np.abs(sizes - median)))
    index = (median - float(sizes[number])) / max(deviation, 1e-12)
    return float(sizes[number] / max(np.median(others), 1e-12)), index


def _led(model: nn.Module, images: Tensor, change: Blend, target: int, monitor: Monitor) -> Tensor:
    """Which of the images the change turns to the target."""
    if not len(images):
        return torch.zeros(0, dtype=torch.bool)
    scores = predict_all(model, change(images), monitor=monitor)
    return (scores.argmax(dim=1) == target).cpu()


def _pairs(images: Tensor, predicted: Tensor, rows: Tensor, change: Blend) -> SamplePairs | None:
    """At most `PAIRS` pairs of the given rows, class after class in turn."""
    if not len(rows):
        return None
    turn = torch.zeros(len(rows), dtype=torch.long)
    for one in predicted[rows].unique().tolist():
        own = predicted[rows] == one
        turn[own] = torch.arange(int(own.sum()))
    chosen = rows[turn.argsort(stable=True)[:PAIRS]]
    clean = images[chosen]
    labels = predicted[chosen].to(clean.device)
    return SamplePairs(change(clean), clean, labels, corrupt=change)
