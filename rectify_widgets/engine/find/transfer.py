"""Which operator carries what pairs show over to other inputs: fitted to the pairs, chosen by its effect.

Imports torch only.  Several forms may explain a pair; the right one shows the behaviour on references
as strongly as the pairs do.  Where none does, there is `adversarial`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_inputs, check_int, check_module
from rectify_widgets.engine.base.progress import SILENT, Cancel, Monitor, Progress
from rectify_widgets.engine.data.corruption import (
    SMALL,
    Corruption,
    Transplant,
    as_corruption,
    covered,
)
from rectify_widgets.engine.data.estimation import Estimate, estimate_corruptions
from rectify_widgets.engine.data.forms import PlacedPatches
from rectify_widgets.engine.data.inputs import Inputs, gather
from rectify_widgets.engine.data.pairs import SamplePairs, check_pairs
from rectify_widgets.engine.find.adversarial import changes_of_their_own
from rectify_widgets.engine.model.gradients import large
from rectify_widgets.engine.model.heads import check_truth, most, probabilities, variation
from rectify_widgets.engine.model.running import (
    batched,
    eval_mode,
    model_device,
    model_dtype,
    predict,
    predict_all,
    with_head,
)

TRIED, QUICK_TRIED = 256, 24
"""References that each form is put onto, at most; the fewer where inputs are `large`."""
FEW = 8
"""References that say whether a patch that one pair shows works at other places at all."""
AS_STRONG = 0.9
"""A form that the pairs support better is preferred if it shows at least this share of what the most
effective one shows."""
LEAST = 0.5
"""Share of the pairs' own change of predictions that a corruption of the whole input has to show on
references, and a patch at other places than the pair's.  At its own place a patch is exempt: what it
covers is replaced as in the pair, whatever it does."""
CLOSELY = 0.05
"""A patch is explained by another form than a transplant only where that error is no larger than this."""


@dataclass(frozen=True, repr=False)
class Transfer:
    """How the pairs' corruption comes onto other inputs.

    Attributes:
        corruption: the operator; None where no form carries the behaviour over.
        name: what it is, or what came closest, in a line.
        shown: change of the predictions on references, as a share of that on the pairs; None where it
            was not measured, since the user gave the function.
        error: in predicting the corrupted inputs of pairs that it was not fitted to, or, with
            one pair, of that pair, see `Estimate`; None likewise.

    Example:
        >>> transfer = rw.estimate_corruption(model, pairs, reference=reference)
        >>> transfer.corruption(x[:5]).shape
        torch.Size([5, 1, 12, 12])
    """

    corruption: Corruption | None
    name: str
    shown: float | None = None
    error: float | None = None

    def __repr__(self) -> str:
        share = "" if self.shown is None else f", shows {self.shown:.0%} of what the pairs show"
        kept = "" if self.corruption is not None else ": too little, so that the pairs stand alone"
        return f"Transfer({self.name}{share}{kept})"


def estimate_corruption(
    model: nn.Module,
    pairs: SamplePairs,
    *,
    reference: Inputs | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Transfer:
    """Find the operator that carries what the pairs show over to other inputs, as `rectify` does.

    Where no form of corruption does, and the pairs lead to one class, it is `AdversarialPerturbation`.

    Args:
        model: the classifier with the behaviour; left as it was.
        pairs: corrupted inputs and their clean counterparts.
        reference: unlabelled inputs like those of training; up to 256 are used.  None takes the pairs'
            clean inputs.
        seed: of what is random in a corruption.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

    Raises:
        TypeError, ValueError: bad input.
        Cancelled: ``cancel`` returned True.

    Example:
        >>> rw.estimate_corruption(model, pairs, reference=reference)
        Transfer(Transplant(6 pairs, opacity 1.00), shows ...% of what the pairs show)
    """
    check_module("model", model)
    check_pairs(pairs)
    check_int("seed", seed, low=0)
    monitor = Monitor(progress, cancel)
    with eval_mode(model, "pairs") as module:
        own = pairs.to(model_device(module), model_dtype(module))
        references = own.clean
        if reference is not None:
            references = gather("reference", reference, TRIED).to(own.clean)
            check_inputs("reference", references, like=own.clean)
        if own.corrupt is not None:  # nothing is measured
            return _as_given(as_corruption(own.corrupt))
        headed = with_head(module, own.clean, own.corrupted, references)
        if own.labels is not None:
            check_truth("pairs.labels", own.labels, predict(headed, own.clean[:1]))
        corrupted, clean, plain = (
            predict_all(headed, some, monitor=monitor)
            for some in (own.corrupted, own.clean, references)
        )
        scores = corrupted, clean, plain
        return choose_corruption(headed, own, references, scores, seed, monitor)[0]


def choose_corruption(
    model: nn.Module,
    pairs: SamplePairs,
    references: Tensor,
    scores: tuple[Tensor, Tensor, Tensor],
    seed: int,
    monitor: Monitor = SILENT,
    *,
    adversarial: bool = True,
) -> tuple[Transfer, Tensor]:
    """The user's function, or the form that explains the pairs and shows the behaviour on references.

    Where none does, a change of each reference's own, see `AdversarialPerturbation`.  Also the
    scores of the first references with that corruption, as many as it was tried on.

    Args:
        model: in evaluation mode.
        pairs: on its device.
        references: ``M × C × H × W`` without the corruption.
        scores: of the pairs' corrupted and clean inputs, and of the references.
        seed: of what is random in a corruption.
        monitor: progress and cancellation.
        adversarial: whether such changes are looked for.
    """
    if pairs.corrupt is not None:
        return _as_given(as_corruption(pairs.corrupt)), scores[2][:0]
    corrupted, clean, plain = scores
    own = max(_distance(corrupted, clean), 1e-6)
    at_most = QUICK_TRIED if large(references) else TRIED
    known: dict[Corruption, Tensor] = {}

    def put_on(corruption: Corruption, count: int) -> tuple[Tensor, float]:
        """Scores of the first references with this corruption, and what it shows on them."""
        monitor.report(1.0, f"trying {corruption} on references")
        answers = known.get(corruption, plain[:0])
        more = corruption(references)[len(answers) : count].to(references)
        answers = torch.cat([answers, *batched(model, more, monitor=monitor)])
        known[corruption] = answers
        return answers, _distance(answers, plain[:count]) / own

    estimates = estimate_corruptions(pairs, references, seed=seed, monitor=monitor)
    local = float(covered(pairs).mean()) <= SMALL
    anywhere: list[Estimate] = []
    if local:
        anywhere = [
            one
            for one in estimates
            if _goes_anywhere(one) and put_on(one.corruption, FEW)[1] >= LEAST
        ]
        estimates = anywhere + [one for one in estimates if _replaces(one)]
    else:
        estimates = [one for one in estimates if one.believable] or estimates[:1]
    tried, shown = zip(*(put_on(one.corruption, at_most) for one in estimates), strict=True)
    # More than the pairs show is no better: what disfigures an input changes its class too.  A patch at
    # other places has to do what it does at its own, also where the pair, of the class that it leads
    # to, shows little.
    enough = AS_STRONG * (max(shown) if anywhere else min(max(shown), 1.0))
    number = next(i for i, share in enumerate(shown) if share >= enough)
    best, share = estimates[number], shown[number]
    if local or (share >= LEAST and best.believable):
        return Transfer(best.corruption, repr(best.corruption), share, best.error), tried[number]
    if adversarial and (
        own_change := changes_of_their_own(model, pairs, references, scores[:2], monitor)
    ):
        carriers = own_change.made(references[:at_most], monitor)
        answers = torch.cat(list(batched(model, carriers, monitor=monitor)))
        if (share := _distance(answers, plain[:at_most]) / own) >= LEAST:
            return Transfer(own_change, repr(own_change), share), answers
    return Transfer(None, repr(best.corruption), shown[number], best.error), tried[number]


def _as_given(corruption: Corruption) -> Transfer:
    """The user's own function, which is taken as it is."""
    return Transfer(corruption, repr(corruption))


def _goes_anywhere(estimate: Estimate) -> bool:
    """Whether this puts a patch that was seen at one place at any other."""
    return estimate.in_sample and isinstance(estimate.corruption, PlacedPatches)


def _replaces(estimate: Estimate) -> bool:
    """Whether this may explain a patch: it takes the pairs' values, or foresees those of other pairs."""
    if isinstance(estimate.corruption, Transplant):
        return True
    return estimate.structured and not estimate.in_sample and estimate.error <= CLOSELY


def _distance(one: Tensor, other: Tensor) -> float:
    """Mean total variation distance of the probabilities that go with scores."""
    return float(torch.nan_to_num(most(variation(probabilities(one), probabilities(other)))).mean())
