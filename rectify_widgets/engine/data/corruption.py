"""A corruption as an operator, and the operator that carries pairs over to other inputs.

Imports torch only.  A `Transplant` models a corruption as ``x̃ = x + a (t − x)`` on the values that it touches: a pattern ``t`` of
opacity ``a``.  Put onto a reference ``r`` it gives

    r̃ = r + (x̃ − x) − a (r − x),

which is a replacement for ``a = 1`` and a plain residual for ``a = 0``.  One pair does not
determine both ``a`` and ``t``, but the data range bounds ``a`` from below: no ``t`` may lie outside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_inputs, check_int, check_number
from rectify_widgets.engine.data.calling import (
    InputFunction,
    call_function,
    check_function,
    name_of,
)
from rectify_widgets.engine.data.pairs import SamplePairs, check_pairs

SMALL = 0.25
"""Share of the input values up to which a corruption counts as a patch rather than a full image."""
PLAIN = 0.1
"""A corruption that varies less than this share of what it replaces takes something away ..."""
HIDES = 0.05
"""... if it covers more than this share of the input; a smaller one hides little anywhere."""


class Corruption(ABC):
    """What makes corrupted inputs of clean ones.  Its `repr` says in one line what it is.

    Example:
        >>> class Fog(rw.Corruption):
        ...     def __call__(self, inputs):
        ...         return 0.5 + 0.5 * inputs
        ...
        ...     def __repr__(self):
        ...         return "Fog()"
        >>> rw.SamplePairs.made(Fog(), x[:3])
        SamplePairs(3 of 1 × 12 × 12, labels from the model, corrupt=Fog())
    """

    @abstractmethod
    def __call__(self, inputs: Tensor) -> Tensor:
        """Corrupted copies of ``M × C × H × W`` inputs, on their device and in their type.

        The same inputs give the same result: what is random depends on a seed and on the row.
        """

    def pursuing(self, model: nn.Module) -> Corruption | None:
        """A change of each input's own that leads ``model`` to the same class; None for most corruptions.

        Edits that are refined together are also refined on what it makes of some inputs, in every step anew,
        with the model as it is edited by then.
        """
        del model
        return None


@dataclass(frozen=True, eq=False, repr=False)
class UserFunction(Corruption):
    """A corruption that the user wrote, see `call_function`.

    Args:
        function: maps ``M × C × H × W`` inputs to corrupted inputs of the same shape.
        seed: what the global generators start from at each call.

    Raises:
        TypeError: ``function`` cannot be called.
    """

    function: InputFunction
    seed: int = 0

    def __post_init__(self) -> None:
        check_function(self.function)
        check_int("seed", self.seed, low=0)

    def __call__(self, inputs: Tensor) -> Tensor:
        """What the function makes of ``M × C × H × W`` inputs, see `call_function`."""
        return call_function(self.function, check_inputs("inputs", inputs), self.seed)

    def __repr__(self) -> str:
        return f"UserFunction({name_of(self.function)})"


def as_corruption(corrupt: InputFunction) -> Corruption:
    """``corrupt`` itself where it is a `Corruption`, and otherwise as a `UserFunction`."""
    return corrupt if isinstance(corrupt, Corruption) else UserFunction(corrupt)


def data_range(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each channel, shaped to broadcast over a sample."""
    channels = inputs.movedim(1, 0).flatten(1)
    shape = (-1,) + (1,) * (inputs.ndim - 2)
    return channels.amin(dim=1).reshape(shape), channels.amax(dim=1).reshape(shape)


def covered(pairs: SamplePairs) -> Tensor:
    """Share of the input values that each pair's corruption changes, one number a pair."""
    return (pairs.corrupted != pairs.clean).flatten(1).float().mean(dim=1)


def touched(pairs: SamplePairs) -> Tensor:
    """Mask ``N × C × H × W`` of the values that belong to each pair's corruption.

    A patch may agree with the clean input at some of its values by chance (a dark square on a dark
    background), so a compact corruption counts as its bounding box.
    """
    mask = pairs.corrupted != pairs.clean
    if mask.ndim != 4:
        return mask
    spots = mask.any(dim=1)
    rows, columns = spots.any(dim=2), spots.any(dim=1)
    box = _between(rows).unsqueeze(2) & _between(columns).unsqueeze(1)
    filled = (spots & box).flatten(1).sum(dim=1) >= 0.5 * box.flatten(1).sum(dim=1)
    return mask | (box & filled.reshape(-1, 1, 1)).unsqueeze(1)


def _between(line: Tensor) -> Tensor:
    """``True`` from the first to the last ``True`` of each row."""
    forward = line.int().cummax(dim=1).values
    backward = line.flip(1).int().cummax(dim=1).values.flip(1)
    return (forward * backward).bool()


def least_opacity(pairs: SamplePairs, low: Tensor, high: Tensor) -> Tensor:
    """For each pair the least opacity whose pattern stays within ``low..high``, in 0..1.

    It is the true opacity wherever the pattern reaches an end of the range at some value.
    """
    change = pairs.corrupted - pairs.clean
    room = torch.where(change > 0, high - pairs.clean, pairs.clean - low)
    needed = torch.where(change == 0, 0.0, change.abs() / room.clamp_min(1e-12))
    return needed.flatten(1).amax(dim=1).clamp(0.0, 1.0)


def common_opacity(pairs: SamplePairs) -> float | None:
    """Opacity of a corruption that two or more pairs share, by least squares, or None.

    Two pairs with the same pattern differ by ``δ_i − δ_j = −a (x_i − x_j)`` where both are
    touched.  None where the pairs do not fit one pattern and one opacity.
    """
    if len(pairs) < 2:
        return None
    change = pairs.corrupted - pairs.clean
    shared = (change != 0).float().mean(dim=0) > 0.5
    if not bool(shared.any()):
        return None
    change, clean = change[:, shared], pairs.clean[:, shared]
    change, clean = change - change.mean(dim=0), clean - clean.mean(dim=0)
    energy = float((clean * clean).sum())
    if energy < 1e-6 * clean.numel():
        return None
    opacity = -float((change * clean).sum()) / energy
    left = float((change + opacity * clean).square().sum())
    if left > 0.1 * energy or not -0.05 <= opacity <= 1.05:
        return None
    return min(max(opacity, 0.0), 1.0)


@dataclass(frozen=True, eq=False, repr=False)
class Transplant(Corruption):
    """Puts the pairs' corruption onto inputs; each input takes that of one pair, in turn.

    A corruption that takes something away, such as a block that is blacked out, goes only where
    there is something like it to take away, see `fits`; an input that fits no pair is returned
    unchanged.  The result lies within the range of the inputs and the pairs.

    Args:
        pairs: where the corruption comes from.
        opacity: 1 replaces the values that the corruption touches, 0 adds the residual, and
            numbers between mix as a semi-transparent pattern does.  ``None`` estimates it: from
            several pairs by least squares; from one pair a corruption of a small part is taken as
            opaque, and one of most of the input has the least opacity that its range allows.
        seed: which pair goes with which input, where there are several.

    Raises:
        TypeError, ValueError: no pairs, an opacity outside 0..1, or (when called) inputs of another
            shape.

    Example:
        >>> transplant = rw.Transplant(pairs, opacity=1.0)
        >>> transplant
        Transplant(6 pairs, opacity 1.00)
        >>> model(transplant(reference)).argmax(dim=1).unique()
        tensor([0])
    """

    pairs: SamplePairs
    opacity: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_pairs(self.pairs)
        if self.opacity is not None:
            check_number("opacity", self.opacity, low=0.0, high=1.0)
        check_int("seed", self.seed, low=0)

    def __call__(self, inputs: Tensor) -> Tensor:
        """``M × C × H × W`` inputs of the pairs' sample shape, with the corruption."""
        inputs = check_inputs("inputs", inputs, like=self.pairs.corrupted)
        pairs = self.pairs.to(inputs.device, inputs.dtype)
        alpha, low, high = opacities(pairs, inputs, self.opacity)
        turn = torch.arange(len(inputs)) % len(pairs)
        if len(pairs) > 1:
            generator = torch.Generator().manual_seed(self.seed)
            turn = turn[torch.randperm(len(inputs), generator=generator)]
        fitting = fits(pairs, inputs, alpha)
        turn = _fitting_turn(turn.to(inputs.device), fitting)
        each = (-1,) + (1,) * (inputs.ndim - 1)
        carried = blend(inputs, pairs.clean[turn], pairs.corrupted[turn], alpha[turn].reshape(each))
        fitting = fitting.gather(1, turn[:, None]).reshape(each)
        result = torch.where(touched(pairs)[turn] & fitting, carried, inputs)
        return torch.minimum(torch.maximum(result, low), high)

    def __repr__(self) -> str:
        number = "1 pair" if len(self.pairs) == 1 else f"{len(self.pairs)} pairs"
        opacity = "by pair" if self.opacity is None else f"{self.opacity:.2f}"
        return f"Transplant({number}, opacity {opacity})"


def blend(inputs: Tensor, clean: Tensor, corrupted: Tensor, opacity: Tensor) -> Tensor:
    """``r + (x̃ − x) − a (r − x)`` for inputs ``r``, before it is limited to the data range."""
    carried = inputs + (corrupted - clean) - opacity * (inputs - clean)
    return torch.where(opacity == 1, corrupted, carried)


def fits(pairs: SamplePairs, inputs: Tensor, opacity: Tensor) -> Tensor:
    """Which pair's corruption may go onto which input, ``M × N``.

    A large opaque corruption that is plain where the pair's clean sample is not takes away what was
    there.  It fits inputs that look more like the clean sample there than like the corrupted one:
    blacking out the place of one input's watermark would hide the subject of another.  Any other
    corruption fits everywhere, and so do all of them if none fits anywhere.

    Args:
        pairs: ``N`` pairs.
        inputs: ``M × C × H × W``.
        opacity: of each pair's corruption, ``N``.
    """
    fitting = torch.ones(len(inputs), len(pairs), dtype=torch.bool, device=inputs.device)
    large = covered(pairs) > HIDES
    for number in (large & (opacity == 1)).nonzero().flatten().tolist():
        pair = pairs[number]
        mask = touched(pair)[0]
        clean, corrupted = pair.clean[0, mask], pair.corrupted[0, mask]
        if corrupted.var(correction=0) < PLAIN * clean.var(correction=0):
            there = inputs[:, mask]
            near, far = ((there - one).square().sum(dim=1) for one in (clean, corrupted))
            fitting[:, number] = near < far
    return fitting if bool(fitting.any()) else ~fitting


def _fitting_turn(turn: Tensor, fitting: Tensor) -> Tensor:
    """Each input's pair or, where that one does not fit, the next that does."""
    for _ in range(fitting.shape[1] - 1):
        unfit = ~fitting.gather(1, turn[:, None]).squeeze(1)
        turn = torch.where(unfit, (turn + 1) % fitting.shape[1], turn)
    return turn


def opacities(
    pairs: SamplePairs, inputs: Tensor, opacity: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Opacity of each pair's corruption, ``N``, and the range of each channel of all values.

    Args:
        pairs, inputs: on one device.
        opacity: of all pairs; None estimates them, see `Transplant`.
    """
    low, high = data_range(torch.cat([inputs, pairs.clean, pairs.corrupted]))
    if opacity is not None:
        check_number("opacity", opacity, low=0.0, high=1.0)
    elif (opacity := common_opacity(pairs)) is None:
        least = least_opacity(pairs, low, high)
        return torch.where(covered(pairs) <= SMALL, 1.0, least), low, high
    return torch.full((len(pairs),), opacity).to(inputs), low, high
