"""Weights that a layer makes from the one that it keeps, in every forward pass.  Imports torch only.

Weight standardisation (Qiao et al. 2019, "Micro-Batch Training with Batch-Channel Normalization and
Weight Standardization") subtracts from each output channel's weight its mean and divides by its standard
deviation; networks without normalisation multiply with a gain besides (Brock et al. 2021,
"Characterizing Signal Propagation to Close the Performance Gap in Unnormalized ResNets").  An edit
changes the weight that is kept, and what it does is seen through the layer's own forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from rectify_widgets.engine.model.running import working_dtype

NUDGE = 1e-4
"""Length of a step that shows a slope, as a share of the weight's own length."""
BEND = 0.05
"""How far the slope may change over such a step, as a share of it, in a weight that follows smoothly."""


class _Found(Exception):  # noqa: N818 - a signal, not an error
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight


class _Catching(TorchFunctionMode):
    """Stops a forward where it multiplies with a weight."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in (functional.conv2d, functional.linear):
            raise _Found(args[1] if len(args) > 1 else given["weight"])
        return func(*args, **given)


def used_weight(module: nn.Conv2d | nn.Linear, kept: Tensor) -> Tensor:
    """What the layer multiplies with when its ``weight`` is ``kept``, in float64.

    Raises:
        ValueError: its forward does not come to a convolution or a linear map with a weight.
    """
    if isinstance(module, nn.Conv2d):
        spans = zip(module.kernel_size, module.dilation, strict=True)
        shape = [1, module.in_channels, *((size - 1) * step + 1 for size, step in spans)]
    else:
        shape = [1, module.in_features]
    slots = module.__dict__
    parameters, buffers = slots["_parameters"], slots["_buffers"]
    try:
        # The layer's own tensors in float64; hooks of the user are not called.
        slots["_parameters"] = {name: _precise(one) for name, one in parameters.items()}
        slots["_parameters"]["weight"] = kept.detach().double()
        slots["_buffers"] = {name: _precise(one) for name, one in buffers.items()}
        with torch.no_grad(), _Catching():
            forward: Any = type(module).forward
            forward(module, kept.new_zeros(shape, dtype=torch.float64))
    except _Found as found:
        return found.weight.detach()
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"its forward cannot be followed ({type(error).__name__})") from error
    finally:
        slots["_parameters"], slots["_buffers"] = parameters, buffers
    raise ValueError("its forward uses no weight")


def _precise(one: Tensor | None) -> Tensor | None:
    if one is None:
        return None
    return one.detach().double() if one.is_floating_point() else one.detach().clone()


def follows(module: nn.Conv2d | nn.Linear) -> bool:
    """Whether what the layer multiplies with follows its weight smoothly, channel by channel.

    Spectral norms mix output channels and quantised weights move in steps; neither does.
    """
    kept = module.weight.detach().double()
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(kept.shape, generator=generator, dtype=torch.float64).to(kept.device)
    step *= NUDGE * _lengths(kept) / _lengths(step).clamp_min(1e-300)
    half = (torch.arange(len(kept)) % 2).to(kept).reshape(-1, *[1] * (kept.ndim - 1))
    try:
        used = used_weight(module, kept)
        if used.shape != kept.shape:
            return False
        whole, part, own = (used_weight(module, kept + by * step) - used for by in (1.0, 0.5, half))
    except ValueError:
        return False
    size = float(whole.norm())
    bent = float((whole - 2 * part).norm())
    mixed = float((own - half * whole).norm())
    return size > 0 and bent <= BEND * size and mixed <= 1e-6 * size


def _lengths(weight: Tensor) -> Tensor:
    """Length of each output channel's weight."""
    lengths: Tensor = weight.flatten(1).norm(dim=1)
    return lengths.reshape(-1, *[1] * (weight.ndim - 1))


def moved(module: nn.Conv2d | nn.Linear, left: Tensor, right: Tensor) -> Tensor:
    """What an edit ``Λ dᵀ`` of the kept weight adds to the used one, ``G × O/G × K``.

    It is in float32 or better.

    Args:
        module: the layer.
        left: ``Λ``, ``G × O/G``.
        right: ``d``, ``G × K``.
    """
    change = used_after(module, left, right) - used_after(module, 0 * left, right)
    return change.to(working_dtype(module.weight.dtype))


def used_after(module: nn.Conv2d | nn.Linear, left: Tensor, right: Tensor) -> Tensor:
    """The used weight with such an edit, ``G × O/G × K`` in float64; see `moved`."""
    kept = module.weight.detach().double()
    delta = torch.einsum("go,gk->gok", left.double(), right.double())
    used = used_weight(module, kept + delta.reshape(kept.shape))
    return used.reshape(delta.shape)


def ignores_mean(module: nn.Conv2d | nn.Linear) -> bool:
    """Whether a constant added to the weight of each output channel changes nothing."""
    kept = module.weight.detach().double()
    used = used_weight(module, kept)
    change = used_weight(module, kept + _lengths(kept) / kept[0].numel() ** 0.5) - used
    return float(change.norm()) <= NUDGE * float(used.norm())


def without_mean(solved: Tensor, constant: Tensor) -> Tensor:
    """Of ``C⁻¹ s`` what adds up to zero over the key: the best direction where a mean is lost.

    Of all directions with a given ``dᵀ s`` and without a mean it responds least to the references:
    ``C⁻¹ (s − 1 (1ᵀ C⁻¹ s) / (1ᵀ C⁻¹ 1))``.

    Args:
        solved: ``C⁻¹ s``, ``G × D × K``.
        constant: ``C⁻¹ 1``, ``G × 1 × K``.
    """
    share = solved.sum(dim=2, keepdim=True) / constant.sum(dim=2, keepdim=True).clamp_min(1e-30)
    return solved - share * constant
