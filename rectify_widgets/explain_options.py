"""Options of the attribution methods, each a frozen dataclass that checks itself.

Imports torch and the engine's checks.  `explain.attribute` takes the fields as keyword arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rectify_widgets.engine.base.checks import check_int, check_number


@dataclass(frozen=True, kw_only=True)
class IntegratedGradientsOptions:
    """Options of ``"integrated-gradients"`` (Sundararajan, Taly, Yan 2017, equation 1).

    ``baseline``: where the path starts, a number or a tensor that broadcasts to the inputs.
    ``steps``: points of the Gauss-Legendre rule along the path.
    """

    baseline: float | Tensor = 0.0
    steps: int = 50

    def __post_init__(self) -> None:
        check_baseline(self.baseline)
        check_int("steps", self.steps, low=1)


@dataclass(frozen=True, kw_only=True)
class SaliencyOptions:
    """Options of ``"saliency"``, the gradient (Simonyan, Vedaldi, Zisserman 2014).

    ``absolute``: its magnitude, as in the paper, or the signed gradient.
    """

    absolute: bool = True

    def __post_init__(self) -> None:
        check_flag("absolute", self.absolute)


@dataclass(frozen=True, kw_only=True)
class InputXGradientOptions:
    """``"input-x-gradient"``, input times gradient (Shrikumar et al. 2016), has no options."""


@dataclass(frozen=True, kw_only=True)
class SmoothGradOptions:
    """Options of ``"smoothgrad"``, the mean gradient of noisy copies (Smilkov et al. 2017).

    ``samples``: noisy copies of each input.  ``noise``: standard deviation of the Gaussian noise as
    a share of that input's own range.  ``absolute``: the magnitude of the mean gradient.
    Input number ``i`` draws its noise from the seed ``seed + i``, whatever the batch size.
    """

    samples: int = 16
    noise: float = 0.15
    absolute: bool = False

    def __post_init__(self) -> None:
        check_int("samples", self.samples, low=1)
        check_number("noise", self.noise, low=0.0)
        check_flag("absolute", self.absolute)


@dataclass(frozen=True, kw_only=True)
class GradCamOptions:
    """Options of ``"grad-cam"`` (Selvaraju et al. 2017, equations 1 and 2).

    ``relu``: keep what speaks for the class only, as in the paper; ``False`` gives a signed map.
    The layer is named by the argument ``layer``; without one it is the last convolution.
    """

    relu: bool = True

    def __post_init__(self) -> None:
        check_flag("relu", self.relu)


@dataclass(frozen=True, kw_only=True)
class OcclusionOptions:
    """Options of ``"occlusion"``: the fall of the score when a window is covered (Zeiler 2014).

    ``window``: side of the square window in pixels, by default a seventh of the smaller side.
    ``stride``: by default half the window.  ``baseline``: what covers it.
    """

    window: int | None = None
    stride: int | None = None
    baseline: float | Tensor = 0.0

    def __post_init__(self) -> None:
        check_baseline(self.baseline)
        if self.window is not None:
            check_int("window", self.window, low=1)
        if self.stride is not None:
            check_int("stride", self.stride, low=1)
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise ValueError(
                f"stride: got {self.stride} with a window of {self.window}, want at most the "
                "window, so that no pixel is left out"
            )


def check_flag(argument: str, value: object) -> None:
    """Refuse anything but ``True`` and ``False``."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument}: got {value!r}, want True or False")


def check_baseline(value: object) -> None:
    """Refuse anything but a finite number or a finite tensor."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise ValueError("baseline: got a tensor that is not finite and floating point")
    else:
        check_number("baseline", value, low=-math.inf)
