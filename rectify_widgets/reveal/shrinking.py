"""The smallest change of inputs that turns them to a class: projected gradient steps in input space.

Imports the engine.  A change mixes each value towards the greatest and the least value of its
channel, ``x + up (high − x) − down (x − low)`` with ``up, down ≥ 0`` and ``up + down ≤ 1``: the mask and
the pattern of Wang et al. 2019 ("Neural Cleanse", IEEE S&P), equation 2, as ``mask = up + down`` and
``pattern = low + (high − low) up / mask``, in which it is linear.  In place of a weighted L1 penalty
there is a bound on the size of the mask, kept by projection, and the bound shrinks for as long as
references are turned: what is left becomes sparse, and no weight has to be found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.corruption import Corruption, data_range
from rectify_widgets.engine.find.adversarial import FEWER, AdversarialPerturbation
from rectify_widgets.engine.model.opening import cut_off
from rectify_widgets.engine.model.running import (
    chunk_size,
    model_device,
    model_dtype,
    predict,
    working_dtype,
)

START = 0.2
"""Share of the pixels that the mask may cover at first."""
SHRINK = 0.94
"""By what the size is multiplied at a step after references were turned."""
TURNED = 0.9
"""Share of references turned, averaged over the last steps, at which the size shrinks ..."""
MEMORY = 0.75
"""... and the weight of earlier steps in that average."""
PATIENCE, WARMING = 40, 20
"""Steps without shrinking after which a class is done; the first steps do not count."""
STEP, MOMENTUM = 0.1, 0.8
"""Greatest change of a value of ``up`` or ``down`` in one step; share kept of the direction before."""
NOISE = 0.05
"""Greatest value of ``up`` and ``down`` at the start."""
HALVINGS = 20
KINDRED, SHOWN = 32, 4
"""Changes that a repair is shown in place of the one that was found, and references in a step of each."""
ROOMIER = 4.0
"""The least size of each is drawn between that of the change that was found and this many times that ..."""
BOLDER = 0.2
"""... and this is the greatest change of its values in one step."""
KINDRED_STEPS = 120
"""As many as it takes to shrink to a few pixels, and some more."""


@dataclass(frozen=True, eq=False, repr=False)
class Blend(Corruption):
    """A mask and a pattern: ``x + up (high − x) − down (x − low)``.

    Args:
        up: how far each value goes towards ``high``, ``C × H × W``, 0 or more.
        down: how far it goes towards ``low``; ``up + down`` is at most 1.
        low, high: least and greatest value of each channel, ``C × 1 × 1``.
    """

    up: Tensor
    down: Tensor
    low: Tensor
    high: Tensor

    @property
    def mask(self) -> Tensor:
        """Opacity of the pattern, ``H × W``, the mean over the channels, 0..1."""
        return (self.up + self.down).mean(dim=0)

    @property
    def pattern(self) -> Tensor:
        """What the mask mixes in, ``C × H × W``; ``low`` where the mask is 0."""
        mask = self.up + self.down
        return self.low + (self.high - self.low) * self.up / mask.clamp_min(1e-12)

    @property
    def size(self) -> float:
        """Pixels that the mask covers: the sum of its opacities."""
        return float(self.mask.sum())

    def __call__(self, inputs: Tensor) -> Tensor:
        """``M × C × H × W`` inputs with the pattern mixed in, in their own type."""
        up, down, low, high = (x.to(inputs) for x in (self.up, self.down, self.low, self.high))
        return inputs + up * (high - inputs) - down * (inputs - low)

    def __repr__(self) -> str:
        return f"Blend({self.size:.1f} of {self.mask.numel()} pixels)"


@dataclass(frozen=True, eq=False, repr=False)
class Changes(Corruption):
    """Several changes to one class: each input gets the next of them.

    Args:
        changes: at least one, all of one range.
        target: the class.
    """

    changes: Sequence[Blend]
    target: int

    def __call__(self, inputs: Tensor) -> Tensor:
        """``M × C × H × W`` inputs, each with its change."""
        turn = torch.arange(len(inputs)) % len(self.changes)
        up, down = (
            torch.stack([getattr(one, name) for one in self.changes])[turn]
            for name in ("up", "down")
        )
        return replace(self.changes[0], up=up, down=down)(inputs)

    def pursuing(self, model: nn.Module) -> AdversarialPerturbation:
        """A change of each input's own, of about as many pixels as these have on average."""
        size = round(sum(one.size for one in self.changes) / len(self.changes))
        pixels = FEWER * max(math.ceil(size / FEWER), 1)
        low, high = self.changes[0].low, self.changes[0].high
        return AdversarialPerturbation(
            model, self.target, 0.0, low, high, steps=FEWER, pixels=pixels
        )

    def __repr__(self) -> str:
        sizes = [one.size for one in self.changes]
        return f"Changes({len(sizes)} of {min(sizes):.1f} to {max(sizes):.1f} pixels)"


def projected(values: Tensor, sizes: Tensor) -> Tensor:
    """The values made valid: 0 or more, ``up + down ≤ 1``, and of no more than the given size.

    The same number is taken off all values of a class, found by bisection, as in the projection
    onto an L1 ball; where ``up + down`` is still above 1 both are scaled.

    Args:
        values: ``K × 2 × C × H × W``, ``up`` and ``down`` of ``K`` changes.
        sizes: greatest size of each, in pixels, ``K``.
    """
    channels = values.shape[2]

    def without(amount: Tensor) -> Tensor:
        left = (values - amount).clamp_min(0)
        return left / left.sum(dim=1, keepdim=True).clamp_min(1)

    def too_large(made: Tensor) -> Tensor:
        large = made.flatten(1).sum(dim=1) / channels > sizes
        return large.reshape(-1, 1, 1, 1, 1)

    low = torch.zeros_like(values[:, :1, :1, :1, :1])
    high = values.flatten(1).amax(dim=1).clamp_min(0).reshape_as(low)
    made = without(low)
    if not bool((large := too_large(made)).any()):
        return made
    high = torch.where(large, high, low)  # nothing is taken off those that are small enough
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        large = too_large(without(middle))
        low, high = torch.where(large, middle, low), torch.where(large, high, middle)
    return without(high)


@dataclass(eq=False)
class Shrinking:
    """Changes of several classes, shrinking side by side.

    Args:
        model: in evaluation mode; gradients of its weights are not touched.
        images: references to turn, ``N × C × H × W``.
        predicted: the class of each, ``N``.
        targets: the classes to turn them to.
        batch_size: references in one step of one class.
        generator: draws the start and the references of each step.
        rate: greatest change of a value in one step.
        least: size, in pixels, at which a change has shrunk enough; of all, or of each, ``K``.
    """

    model: nn.Module
    images: Tensor
    predicted: Tensor
    targets: list[int]
    batch_size: int
    generator: torch.Generator
    rate: float = STEP
    least: Tensor | float = 0.0
    values: Tensor = field(init=False)
    found: Tensor = field(init=False)
    reached: Tensor = field(init=False)

    def __post_init__(self) -> None:
        count, shape = len(self.targets), tuple(self.images.shape[1:])
        device = model_device(self.model)
        self._images = self.images.to(device, working_dtype(model_dtype(self.model)))
        self._low, self._high = data_range(self._images)
        predicted = self.predicted.cpu()
        self._pools = [torch.nonzero(predicted != one).flatten() for one in self.targets]
        self._sizes = torch.full((count,), START * shape[-2] * shape[-1]).to(self._images)
        noise = torch.rand(count, 2, *shape, generator=self.generator)
        self.values = projected(NOISE * noise.to(self._images), self._sizes)
        self._velocity = torch.zeros_like(self.values)
        self.found = self.values.clone()  # the smallest that turned enough
        self.reached = torch.zeros(count, dtype=torch.bool)  # whether there was one
        self._share = torch.zeros(count)
        self._waited = torch.zeros(count, dtype=torch.long)

    def run(self, steps: int, monitor: Monitor) -> list[Blend]:
        """Make up to so many steps; the smallest change of each class that turned enough references.

        A class that has found none has the one that it ended with; `reached` says which.
        """
        for step in range(steps):
            going_on = (self._waited < PATIENCE) & (self._sizes.cpu() > self.least)
            live = torch.nonzero(going_on).flatten().tolist()
            if not live:
                break
            sizes = ", ".join(f"{self.targets[k]}: {float(self._sizes[k]):.1f}" for k in live[:4])
            monitor.report(step / steps, f"pixels that turn references to class {sizes}")
            self._step(live, monitor.silent())
            if step < WARMING:
                self._waited.zero_()
        for k in torch.nonzero(~self.reached).flatten().tolist():
            self.found[k] = self.values[k]
        return [Blend(up, down, self._low, self._high) for up, down in self.found]

    def _step(self, live: list[int], monitor: Monitor) -> None:
        rows = torch.stack(
            [
                pool[torch.randint(len(pool), (self.batch_size,), generator=self.generator)]
                for pool in (self._pools[k] for k in live)
            ]
        )
        values = self.values[live]
        gradient, share = self._gradient(live, values, rows, monitor)
        self._share[live] = MEMORY * self._share[live] + (1 - MEMORY) * share
        for k in live:
            self._waited[k] += 1
            if float(self._share[k]) >= TURNED:
                self.found[k], self.reached[k], self._waited[k] = self.values[k], True, 0
                now = self.values[k].sum() / self.values.shape[2]
                self._sizes[k] = SHRINK * torch.minimum(self._sizes[k], now)
        greatest = gradient.flatten(1).abs().amax(dim=1).clamp_min(1e-12).reshape(-1, 1, 1, 1, 1)
        along = MOMENTUM * self._velocity[live] + (1 - MOMENTUM) * gradient / greatest
        self._velocity[live] = along
        self.values[live] = projected(values - self.rate * along, self._sizes[live])

    def _gradient(
        self, live: list[int], values: Tensor, rows: Tensor, monitor: Monitor
    ) -> tuple[Tensor, Tensor]:
        """Gradient of each class's mean cross-entropy, and the share of its references turned."""
        gradient = torch.zeros_like(values)
        which = torch.arange(len(live)).repeat_interleave(self.batch_size)
        goals = torch.tensor([self.targets[k] for k in live])[which].to(values.device)
        turned = torch.zeros(len(which))
        size = 4 * chunk_size(self._images, values.device)
        for part in torch.arange(len(which)).split(size):
            monitor.check()
            own, clean = which[part], self._images[rows.flatten()[part]]
            up, down = values[own].unbind(dim=1)
            given = clean + up * (self._high - clean) - down * (clean - self._low)
            with torch.enable_grad():
                given = given.to(model_dtype(self.model)).requires_grad_()
                scores = predict(self.model, given).to(values)
                loss = functional.cross_entropy(scores, goals[part], reduction="sum")
                slope = self._slope(loss / self.batch_size, given)
            slope = slope.to(values)
            both = torch.stack([slope * (self._high - clean), -slope * (clean - self._low)], dim=1)
            gradient.index_add_(0, own.to(values.device), both)
            turned[part] = (scores.argmax(dim=1) == goals[part]).float().cpu()
        return gradient, turned.reshape(len(live), -1).mean(dim=1)

    def _slope(self, loss: Tensor, given: Tensor) -> Tensor:
        """Gradient of the loss; where the model keeps it back, the reason."""
        try:
            return torch.autograd.grad(loss, given)[0]
        except RuntimeError as error:
            if not (reason := cut_off(partial(predict, self.model), self.model, given)):
                raise
            raise ValueError(f"model: {reason}; want one that can be differentiated") from error


def kindred(
    model: nn.Module,
    images: Tensor,
    predicted: Tensor,
    target: int,
    change: Blend,
    steps: int,
    generator: torch.Generator,
    monitor: Monitor,
) -> Changes:
    """Further changes that turn references to a class, up to `ROOMIER` times as large.

    What a search finds is one of many changes that a network answers to, seldom the trigger itself, and a
    repair of it alone leaves the others.  These begin at other places and end at other sizes.

    Args:
        model, images, predicted, generator: as for `Shrinking`.
        target: the class.
        change: the smallest one that was found.
        steps: at most so many.
        monitor: progress and cancellation.
    """
    larger = 1.0 + (ROOMIER - 1.0) * torch.rand(KINDRED, generator=generator)
    search = Shrinking(
        model, images, predicted, [target] * KINDRED, SHOWN, generator,
        rate=BOLDER, least=change.size * larger,
    )  # fmt: skip
    return Changes(search.run(steps, monitor), target)
