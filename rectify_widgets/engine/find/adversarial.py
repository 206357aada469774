"""For a corruption that differs on every input: a change of each input that leads it to the same class.

Imports torch only.  A trigger that a generator makes for each input (Nguyen and Tran 2020, "Input-Aware
Dynamic Backdoor Attack", NeurIPS) cannot be fitted to pairs.  But the short cut that it takes through
the network is open to other changes as well, and small ones find it.  Training on such changes
removes backdoors: Wei et al. 2023, "Shared Adversarial Unlearning" (NeurIPS).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.base.checks import check_inputs, check_int, check_module, check_number
from rectify_widgets.engine.base.progress import SILENT, Monitor
from rectify_widgets.engine.data.corruption import Corruption, data_range
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.heads import answers
from rectify_widgets.engine.model.opening import cut_off
from rectify_widgets.engine.model.running import (
    chunk_size,
    eval_mode,
    in_chunks,
    model_device,
    model_dtype,
    predict,
    predict_all,
    working_dtype,
)

STEPS, LENGTH = 20, 2.5
"""Gradient steps, and the length of all of them together, in multiples of the greatest norm."""
LED, WIDER = 0.95, 2.0
"""The greatest norm is so many times the smallest one that leads this share of the references to the class, but
no more than the pairs' changes.  On residual networks, where the smallest one is a quarter of the pairs',
9.4 % of an input-aware attack were left with a quarter of the pairs' norm, 5.9 with half, 8.1 with all of it."""
LESS, FEWER = 0.5, 4
"""An edited model is led by changes of this share of the norm, found in so many steps."""
FEW, FINER, TRIED = 50, 2**0.5, 12
"""References on which the norm is sought, and the factor between two norms, this many below the pairs'."""


@dataclass(frozen=True, eq=False, repr=False)
class AdversarialPerturbation(Corruption):
    """A change of each input of its own that leads it to a class, by projected gradient descent.

    ``δ ← Π(δ − η g / ‖g‖₂)`` with ``g`` the gradient of the cross-entropy to the class, and ``Π`` the
    projection onto ``‖δ‖₂ ≤ norm`` and the range of the data, from ``δ = 0``: Madry et al. 2018,
    "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR), there for ``L∞``.

    Args:
        model: the classifier that is led; it runs with the weights that it has at each call.
        target: class to lead to.
        norm: greatest Euclidean norm of a change.
        low, high: least and greatest value of the data, shaped to broadcast over a sample.
        steps: gradient steps.
        pixels: change no more than so many pixels of each ``C × H × W`` input instead, each of them
            to the least or the greatest values: in every step those that promise most, to first
            order.  ``norm`` has no say then.  None for changes of all.

    Raises:
        TypeError, ValueError: bad input.

    Example:
        >>> own = rw.AdversarialPerturbation(model, 0, 1.5, torch.tensor(0.0), torch.tensor(1.0))
        >>> own
        AdversarialPerturbation(to class 0, norm 1.50)
        >>> model(own(x[:5])).argmax(dim=1)
        tensor([0, 0, 0, 0, 0])
    """

    model: nn.Module
    target: int
    norm: float
    low: Tensor
    high: Tensor
    steps: int = STEPS
    pixels: int | None = None

    def __post_init__(self) -> None:
        check_module("model", self.model)
        check_int("target", self.target, low=0)
        check_number("norm", self.norm, low=0.0)
        check_int("steps", self.steps, low=1)
        if self.pixels is not None:
            check_int("pixels", self.pixels, low=1)

    def __call__(self, inputs: Tensor) -> Tensor:
        """``M × C × H × W`` inputs, each with its change."""
        inputs = check_inputs("inputs", inputs)
        if self.pixels is not None and inputs.ndim < 4:
            raise ValueError(
                f"inputs: got shape {tuple(inputs.shape)}, want M × C × H × W to change pixels of"
            )
        return self.made(inputs, SILENT)

    def made(self, inputs: Tensor, monitor: Monitor) -> Tensor:
        """The same, with progress and cancellation."""
        with eval_mode(self.model) as module:
            device = model_device(module)
            images = inputs.to(device, working_dtype(model_dtype(module)))

            def some(rows: slice) -> Tensor:
                monitor.report(rows.start / len(images), "looking for a change of each reference")
                return self._led(module, images[rows], monitor.silent())

            return torch.cat(list(in_chunks(len(images), chunk_size(images, device), some))).to(
                inputs
            )

    def _led(self, model: nn.Module, clean: Tensor, monitor: Monitor) -> Tensor:
        low, high = self.low.to(clean), self.high.to(clean)
        goals = torch.full((len(clean),), self.target, device=clean.device)
        change = torch.zeros_like(clean)
        for step in range(self.steps):
            monitor.check()
            with torch.enable_grad():
                given = (clean + change).to(model_dtype(model)).requires_grad_()
                scores = predict(model, given).to(clean)
                loss = functional.cross_entropy(scores, goals, reduction="sum")
                slope = torch.autograd.grad(loss, given)[0].to(clean)
            if self.pixels is None:
                change = change - LENGTH * self.norm / self.steps * slope / _norms(slope)
                change = change * (self.norm / _norms(change)).clamp_max(1.0)
                change = torch.minimum(torch.maximum(clean + change, low), high) - clean
            else:
                end = torch.where(slope < 0, high, low)
                gain = (slope * (clean + change - end)).sum(dim=1, keepdim=True)
                pixels = min(self.pixels, gain[0].numel())
                count = (step + 1) * pixels // self.steps - step * pixels // self.steps
                most = gain.flatten(1).topk(count).indices
                chosen = torch.zeros_like(gain).flatten(1).scatter(1, most, 1.0).reshape_as(gain)
                change = torch.where(chosen > 0, end - clean, change)
        return clean + change

    def pursuing(self, model: nn.Module) -> AdversarialPerturbation:
        """The same for the edited model, with smaller changes and fewer steps."""
        return replace(self, model=model, norm=LESS * self.norm, steps=FEWER)

    def __repr__(self) -> str:
        most = f"norm {self.norm:.2f}" if self.pixels is None else f"{self.pixels} pixels"
        return f"AdversarialPerturbation(to class {self.target}, {most})"


def changes_of_their_own(
    model: nn.Module,
    pairs: SamplePairs,
    references: Tensor,
    scores: tuple[Tensor, Tensor],
    monitor: Monitor,
) -> AdversarialPerturbation | None:
    """Changes to the class that most pairs are led to, see `LED`; None where there is no such class.

    Args:
        model: in evaluation mode.
        pairs: on its device.
        references: ``M × C × H × W``, for the range of the data and the norm.
        scores: of the pairs' corrupted and clean inputs.
    """
    corrupted, clean = scores
    led = answers(corrupted)
    led = led[led != answers(clean)] if corrupted.ndim == 2 else led[:0]
    target = int(led.mode().values) if len(led) else 0
    if 2 * int((led == target).sum()) <= len(led):
        return None
    if cut_off(partial(predict, model), model, pairs.clean):
        return None
    low, high = data_range(torch.cat([references, pairs.clean, pairs.corrupted]))
    most = float((pairs.corrupted - pairs.clean).flatten(1).norm(dim=1).mean())
    own = AdversarialPerturbation(model, target, most, low, high)
    few = references[:FEW]
    few = few[answers(predict_all(model, few)) != target]
    if not len(few):
        return None

    def too_small(times: int) -> bool:
        monitor.report(0.0, "looking for how large changes have to be")
        led = replace(own, norm=most / FINER**times).made(few, monitor.silent())
        return int((answers(predict_all(model, led)) == target).sum()) < LED * len(few)

    enough = bisect_left(range(1, TRIED + 1), True, key=too_small)
    return replace(own, norm=min(WIDER / FINER**enough, 1.0) * most)


def put_onto(corruption: Corruption, inputs: Tensor, monitor: Monitor) -> Tensor:
    """``corruption(inputs)``, with progress and cancellation where it takes long."""
    if isinstance(corruption, AdversarialPerturbation):
        return corruption.made(inputs, monitor)
    return corruption(inputs)


def _norms(values: Tensor) -> Tensor:
    """The Euclidean norm of each sample, shaped to broadcast."""
    lengths: Tensor = values.flatten(1).norm(dim=1).clamp_min(1e-12)
    return lengths.reshape(-1, *[1] * (values.ndim - 1))
