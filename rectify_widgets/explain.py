"""Input attribution maps through captum: which input values speak for a class.  Imports the engine.

`attribute` is the entry point.  Each method is a function that checks its options and returns what
makes the maps of a chunk of inputs; captum does the computation.  The model that a method gets is a
`_Probe`: it runs the real model on a copy of the inputs, so that in-place operations do no harm, and
checks for cancellation before every forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.base.checks import (
    check_choice,
    check_flag,
    check_inputs,
    check_int,
    check_labels,
    check_number,
    nearest,
)  # fmt: skip
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.model.heads import to_explain
from rectify_widgets.engine.model.layout import ToMaps, check_layout, from_layer, to_maps
from rectify_widgets.engine.model.opening import cut_off
from rectify_widgets.engine.model.outputs import Adapted
from rectify_widgets.engine.model.running import (
    chunk_size,
    eval_mode,
    model_device,
    model_dtype,
    predict,
    unwrap,
    with_head,
)

MOST = 32
"""Inputs in one forward pass at most, where nobody says."""


def attribute(
    model: nn.Module,
    inputs: Tensor,
    *,
    method: str = "integrated-gradients",
    target: int | Tensor | None = None,
    layer: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    **options: Any,
) -> Tensor:
    """Attribution of one class's score to the values of each input.

    Args:
        model: maps ``N × C × H × W`` inputs to ``N × classes`` scores.  It is run in evaluation
            mode and left as it was: flags, hooks, gradients and the random state.
        inputs: ``N × C × H × W``, floating point, in the model's input space.
        method: ``"integrated-gradients"``, ``"saliency"``, ``"input-x-gradient"``,
            ``"smoothgrad"``, ``"grad-cam"`` or ``"occlusion"``.
        target: the class or label to explain, one number for all or ``N`` numbers; ``None`` means
            the class that the model itself predicts for each input, or the label that it is surest of.
            Of one column, class 1 is explained by the log-odds and class 0 by their negative; of
            labels, each by its log-odds.
        layer: dotted name of the layer that Grad-CAM explains; other methods take none.
        batch_size: most inputs in one forward pass; it changes memory and time, not the result.
            None takes what suits their size, 32 at most.
        seed: of SmoothGrad's noise.
        progress, cancel: hooks, as everywhere; the latter is asked before every forward pass.
        **options: of the method; see the function of each in this module.

    Returns:
        ``N × C × H × W``, or ``N × 1 × H × W`` for Grad-CAM (bilinear), with the dtype and on the
        device of ``inputs``.

    Raises:
        TypeError: an option that the method does not have, or an argument of the wrong kind.
        ValueError: inputs, targets, layer names or numbers that cannot be used.
        Cancelled: ``cancel`` returned True.

    Example:
        >>> maps = rw.attribute(model, x_bad[:4], method="occlusion", window=3)
        >>> maps.shape
        torch.Size([4, 1, 12, 12])
        >>> maps[1, 0].argmax() // 12 >= 8  # the row of the largest value: on the square
        tensor(True)
    """
    make_maps = _prepare(method, layer, options)
    images = check_images(inputs)
    if batch_size is not None:
        check_int("batch_size", batch_size, low=1)
    check_int("seed", seed, low=0)
    monitor = Monitor(progress, cancel)
    with eval_mode(model) as module:
        batch_size = batch_size or min(chunk_size(images, model_device(module)), MOST)
        headed = with_head(module, images, columns=True)
        probe = _Probe(headed, monitor, batch_size, seed)
        if method == "grad-cam":
            probe.layer = find_layer(unwrap(module), layer)
        count, parts = len(images), []
        targets = _targets(probe, images, target)
        for start in range(0, count, batch_size):
            rows = slice(start, start + batch_size)
            chunk = probe.place(images[rows])
            probe.enter(start, count, len(chunk), method)
            classes = probe.forward(chunk).argmax(dim=1) if targets is None else targets[rows]
            maps = _maps(probe, make_maps, chunk, classes)
            parts.append(maps.detach().to(device=images.device, dtype=images.dtype))
    monitor.report(1.0, f"{method}: {count} of {count}")
    result = torch.cat(parts)
    if not bool(torch.isfinite(result).all()):
        raise ValueError(
            f"model: its {method} map has NaN or infinite values; check that its scores and "
            "weights are finite, or try it in float32"
        )
    return result


def _maps(probe: _Probe, make_maps: Maps, chunk: Tensor, classes: Tensor) -> Tensor:
    """The maps of a chunk; where the model keeps back their gradient, the reason."""
    try:
        with torch.enable_grad():
            return make_maps(probe, chunk, classes)
    except RuntimeError as error:
        reason = cut_off(partial(predict, probe.model), probe.model, chunk)
        if not reason:
            raise
        raise ValueError(
            f"model: {reason}; want one that can be differentiated, or method='occlusion'"
        ) from error


class _Probe:
    """The model as captum sees it, and where in the work it is called."""

    def __init__(self, model: nn.Module, monitor: Monitor, batch_size: int, seed: int) -> None:
        self.model = model
        self.layer = model  # for Grad-CAM, the layer to explain
        self.batch_size, self.seed = batch_size, seed
        self.first, self.count = 0, 0
        self._monitor = self._part = monitor
        self._message = ""
        self.expect(1)

    def place(self, chunk: Tensor) -> Tensor:
        """An own copy of a chunk, on the model's device and in its floating-point type."""
        own = chunk.detach().to(model_device(self.model), model_dtype(self.model), copy=True)
        return own.requires_grad_()

    def enter(self, start: int, count: int, size: int, method: str) -> None:
        """Begin the chunk that starts at input ``start`` of ``count``."""
        self.first, self.count = start, count
        self._part = self._monitor.part(start / count, (start + size) / count)
        self._message = f"{method}: {start} of {count}"
        self.expect(1)

    def expect(self, passes: int) -> None:
        """Say how many forward passes the chunk takes, for the progress report."""
        self._passes, self._expected = 0, passes

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores ``N × classes`` of a copy of ``inputs``."""
        self._part.report(min(self._passes / self._expected, 1.0), self._message)
        self._passes += 1
        return _explained(self.model, predict(self.model, inputs.clone()))


def _explained(model: nn.Module, scores: Tensor) -> Tensor:
    """What is explained of the scores, ``N × classes`` or ``N × labels``: log-odds where there are two."""
    two_way = isinstance(model, Adapted) and model.task == "binary"
    return 2 * scores if two_way else to_explain(scores)


Maps = Callable[[_Probe, Tensor, Tensor], Tensor]
"""Gives the maps of a chunk of inputs, ``N × C × H × W``, for one class each."""


def integrated_gradients(*, baseline: float | Tensor = 0.0, steps: int = 50) -> Maps:
    """``"integrated-gradients"`` (Sundararajan, Taly, Yan 2017, equation 1).

    ``baseline``: where the path starts, a number or a tensor that broadcasts to the inputs.
    ``steps``: points of the Gauss-Legendre rule along the path.
    """
    from captum import attr

    check_baseline(baseline)
    check_int("steps", steps, low=1)

    def maps(probe: _Probe, inputs: Tensor, target: Tensor) -> Any:
        rows = max(probe.batch_size // len(inputs), 1)
        probe.expect(math.ceil(steps / rows))
        return attr.IntegratedGradients(probe.forward).attribute(
            inputs,
            baselines=_baseline(probe, inputs, baseline),
            target=target,
            n_steps=steps,
            internal_batch_size=max(probe.batch_size, len(inputs)),
        )

    return maps


def saliency(*, absolute: bool = True) -> Maps:
    """``"saliency"``, the gradient (Simonyan, Vedaldi, Zisserman 2014).

    ``absolute``: its magnitude, as in the paper, or the signed gradient.
    """
    from captum import attr

    check_flag("absolute", absolute)
    return lambda probe, inputs, target: attr.Saliency(probe.forward).attribute(
        inputs, target=target, abs=absolute
    )


def input_x_gradient() -> Maps:
    """``"input-x-gradient"``, input times gradient (Shrikumar et al. 2016), has no options."""
    from captum import attr

    return lambda probe, inputs, target: attr.InputXGradient(probe.forward).attribute(
        inputs, target
    )


def smoothgrad(*, samples: int = 16, noise: float = 0.15, absolute: bool = False) -> Maps:
    """``"smoothgrad"``, the mean gradient of noisy copies (Smilkov et al. 2017).

    ``samples``: noisy copies of each input.  ``noise``: standard deviation of the Gaussian noise as
    a share of that input's own range.  ``absolute``: the magnitude of the mean gradient.
    Input number ``i`` draws its noise from the seed ``seed + i``, whatever the batch size.
    """
    from captum import attr

    check_int("samples", samples, low=1)
    check_number("noise", noise, low=0.0)
    check_flag("absolute", absolute)

    def maps(probe: _Probe, inputs: Tensor, target: Tensor) -> Tensor:
        probe.expect(samples)
        plain = inputs.detach()
        flat = plain.flatten(1)
        spread = noise * (flat.amax(dim=1) - flat.amin(dim=1)).reshape(-1, 1, 1, 1)
        generators = [
            torch.Generator().manual_seed(probe.seed + probe.first + row)
            for row in range(len(plain))
        ]
        total = torch.zeros_like(plain)
        gradient = attr.Saliency(probe.forward)
        for _ in range(samples):
            drawn = torch.stack([torch.randn(plain.shape[1:], generator=g) for g in generators])
            noisy = plain + spread * drawn.to(plain)
            total += gradient.attribute(noisy.requires_grad_(), target=target, abs=False)
        mean = total / samples
        return mean.abs() if absolute else mean

    return maps


def grad_cam(*, relu: bool = True, layout: str | ToMaps | None = None) -> Maps:
    """``"grad-cam"`` (Selvaraju et al. 2017, equations 1 and 2).

    ``relu``: keep what speaks for the class only, as in the paper; ``False`` gives a signed map.
    ``layout``: how the layer's output lies: ``"channels-first"`` (``N × C × h × w`` or
    ``N × C × T``), ``"channels-last"`` (``N × h × w × C`` or ``N × T × C``), or a function that
    arranges it as ``N × C × h × w``; ``None`` follows the axes through the network.  ``T`` tokens
    are a grid in the proportions of the image; class tokens in front of it are left out.
    The layer is named by the argument ``layer``; without one it is the last convolution.
    """
    check_flag("relu", relu)
    check_layout(layout)

    def maps(probe: _Probe, inputs: Tensor, target: Tensor) -> Tensor:
        arrange, besides = to_maps(probe.model, probe.layer, inputs, layout)
        output, scores = from_layer(probe.layer, probe.forward, inputs)
        score = scores.gather(1, target.to(scores.device)[:, None]).sum()
        gradient = None
        if score.requires_grad and output.requires_grad:
            (gradient,) = torch.autograd.grad(score, output, allow_unused=True)
        if gradient is None:
            raise ValueError(
                "layer: no gradient of the score comes back to it, want a layer that the score "
                "depends on"
            )
        slopes = arrange(gradient)
        if besides and bool(gradient.any()) and not bool(slopes.any()):
            raise ValueError(
                "layer: the score depends on its class token alone, so that it has no map; name "
                "a layer further in front, that of the last attention at most"
            )
        weighted = slopes.mean(dim=(2, 3), keepdim=True) * arrange(output.detach())
        small = weighted.sum(dim=1, keepdim=True)
        small = small.relu() if relu else small
        return functional.interpolate(small, tuple(inputs.shape[-2:]), mode="bilinear")

    return maps


def occlusion(
    *, window: int | None = None, stride: int | None = None, baseline: float | Tensor = 0.0
) -> Maps:
    """``"occlusion"``: the fall of the score when a window is covered (Zeiler 2014).

    ``window``: side of the square window in pixels, by default a seventh of the smaller side.
    ``stride``: by default half the window.  ``baseline``: what covers it.
    """
    from captum import attr

    check_baseline(baseline)
    for name, given in (("window", window), ("stride", stride)):
        if given is not None:
            check_int(name, given, low=1)
    if window is not None and stride is not None and stride > window:
        raise ValueError(
            f"stride: got {stride} with a window of {window}, want at most the window, so that no "
            "pixel is left out"
        )

    def maps(probe: _Probe, inputs: Tensor, target: Tensor) -> Any:
        channels, height, width = inputs.shape[1:]
        smaller = min(height, width)
        side = window or max(smaller // 7, stride or 1)
        if side > smaller:
            raise ValueError(
                f"window: got {side} for images of {height} × {width}, want at most {smaller}"
            )
        step = stride or max(side // 2, 1)
        places = math.prod(math.ceil((length - side) / step) + 1 for length in (height, width))
        together = max(probe.batch_size // len(inputs), 1)
        probe.expect(math.ceil(places / together) + 1)
        return attr.Occlusion(probe.forward).attribute(
            inputs.detach(),
            sliding_window_shapes=(channels, side, side),
            strides=(channels, step, step),
            baselines=_baseline(probe, inputs, baseline),
            target=target,
            perturbations_per_eval=together,
        )

    return maps


_METHODS: Mapping[str, Callable[..., Maps]] = {
    "integrated-gradients": integrated_gradients,
    "saliency": saliency,
    "input-x-gradient": input_x_gradient,
    "smoothgrad": smoothgrad,
    "grad-cam": grad_cam,
    "occlusion": occlusion,
}

ATTRIBUTION_METHODS: tuple[str, ...] = tuple(_METHODS)
"""Names of the attribution methods."""


def _prepare(method: str, layer: str | None, options: Mapping[str, Any]) -> Maps:
    """A method with its checked options."""
    kind = _METHODS[check_choice("method", method, ATTRIBUTION_METHODS)]
    known = list(signature(kind).parameters)
    for name in options:
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has none"
            raise TypeError(
                f"attribute() got an option {name!r} that method {method!r} does not have; it "
                f"{has}{nearest(name, known)}"
            )
    if layer is not None and method != "grad-cam":
        raise ValueError(f"layer: method {method!r} has no layer, want method='grad-cam' or None")
    return kind(**options)


def check_images(inputs: object) -> Tensor:
    """``inputs`` if they are a finite, floating ``N × C × H × W`` batch."""
    images = check_inputs("inputs", inputs)
    if images.ndim != 4:
        raise ValueError(
            f"inputs: got shape {tuple(images.shape)}, want N × C × H × W"
            + ("; add the batch dimension with [None]" if images.ndim < 4 else "")
        )
    return images


def find_layer(model: nn.Module, name: str | None) -> nn.Module:
    """The module of that dotted name; without a name the last convolution.

    Raises:
        TypeError: the name is not a string.
        ValueError: no module of that name, or no convolution where none was named.
    """
    if name is None:
        convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
        if not convolutions:
            raise ValueError("layer: the model has no convolution, want the name of a layer")
        return convolutions[-1]
    if not isinstance(name, str):
        raise TypeError(f"layer: got {type(name).__name__}, want a dotted module name or None")
    parts: dict[str, nn.Module] = dict(model.named_modules())
    if not name or name not in parts:
        raise ValueError(
            f"layer: the model has no module {name!r}{nearest(name, list(parts)[1:])}; "
            "dict(model.named_modules()) lists them"
        )
    return parts[name]


def _targets(probe: _Probe, inputs: Tensor, target: int | Tensor | None) -> Tensor | None:
    """One class number an input, checked against the model's scores; None where none is given."""
    if target is None:
        return None
    classes = int(probe.forward(probe.place(inputs[:1])).shape[1])
    if isinstance(target, Tensor) and not target.ndim and not target.is_floating_point():
        target = int(target)
    if isinstance(target, int | np.integer) and not isinstance(target, bool):
        target = torch.full((len(inputs),), int(target))
    labels = check_labels("target", target, count=len(inputs), classes=classes)
    return labels.to(model_device(probe.model))


def check_baseline(value: object) -> None:
    """Refuse anything but a finite number or a finite tensor."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise ValueError("baseline: got a tensor that is not finite and floating point")
    else:
        check_number("baseline", value, low=-math.inf)


def _baseline(probe: _Probe, inputs: Tensor, baseline: float | Tensor) -> Tensor:
    """The baseline as a tensor of the chunk's shape."""
    if not isinstance(baseline, Tensor):
        return torch.full_like(inputs, float(baseline), requires_grad=False)
    value = baseline.detach().to(inputs)
    if value.ndim == inputs.ndim and len(value) == probe.count:
        value = value[probe.first : probe.first + len(inputs)]
    try:
        return value.expand_as(inputs).contiguous()
    except RuntimeError:
        raise ValueError(
            f"baseline: got shape {tuple(baseline.shape)}, want one that broadcasts to the inputs' "
            f"N × {' × '.join(map(str, inputs.shape[1:]))}"
        ) from None
