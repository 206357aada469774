"""Clean counterparts of inputs whose corrupted pixels are known.  Imports the engine and `fills`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_choice, check_int, check_number
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.inputs import Inputs, batches
from rectify_widgets.engine.model.running import eval_mode, predict_all, with_head
from rectify_widgets.explain import check_images
from rectify_widgets.reveal.fills import FILLS, Fill, Mask, Picture, grown, surroundings

BEST, REFERENCE = "best", "reference"
FEWEST = 8
"""References of which the best-fitting one is worth looking for."""
AGREEING = 0.1
"""Mean distance to the other fills' answers (total variation, 0..1) that counts as a tie."""


def cleanse(
    inputs: Tensor,
    masks: Tensor,
    fill: str | float = BEST,
    model: nn.Module | None = None,
    reference: Inputs | None = None,
    *,
    grow: int = 1,
    batch_size: int = 64,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Tensor:
    """Inputs with the masked pixels painted out: the clean half of `SamplePairs`.

    Args:
        inputs: ``N × C × H × W``, floating point, in the model's input space.
        masks: which pixels are corrupted, boolean, ``N × H × W``, or ``H × W`` for all inputs.
        fill: what takes their place.  ``"texture"``: the piece of the same picture whose
            surroundings match best.  ``"biharmonic"``: the smoothest surface through the
            surroundings.  ``"blur"``: a Gaussian mean of the surroundings.  ``"ring"``: the mean of
            the pixels next to the region.  A number, in input space.  ``"reference"``: the same
            place of the reference whose surroundings match best, among those that differ there from
            the input.  ``"best"``: all of them but the number are tried, and of those whose answers
            agree best with the others', the first in this order is taken; without a model this
            is ``"reference"`` where there are references and ``"texture"`` where there are none.
        model: says for ``"best"`` what each fill makes of the input; left as it was.
        reference: unlabelled inputs, at least eight, for ``"reference"`` and ``"best"``.
        grow: pixels by which the masks are widened first, since borders are seldom exact; 0 for
            masks that are, since what is widened becomes a part of the corruption that pairs show.
        batch_size: inputs in one forward pass.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

    Returns:
        ``N × C × H × W`` like ``inputs``; pixels outside of the widened masks are the same bits.

    Raises:
        TypeError: an argument of the wrong kind; masks that are not boolean.
        ValueError: shapes that do not fit, NaN, a mask without a pixel or without a pixel left
            around it, an unknown fill, or too few references.
        Cancelled: ``cancel`` returned True.

    Example:
        >>> mask = torch.zeros(6, 12, 12, dtype=torch.bool)
        >>> mask[:, 9:, 9:] = True
        >>> clean = rw.cleanse(pairs.corrupted, mask, model=model)
        >>> model(clean).argmax(dim=1)
        tensor([0, 1, 2, 0, 1, 2])
        >>> found = rw.SamplePairs(pairs.corrupted, clean)
        >>> repaired = rw.rectify(model, found, reference=reference)
    """
    images = check_images(inputs)
    check_int("batch_size", batch_size, low=1)
    regions = check_masks(masks, images, grow=check_int("grow", grow, low=0))
    monitor = Monitor(progress, cancel)
    if not isinstance(fill, str):
        value = check_number("fill", fill, low=-math.inf)
        return _placed(images, regions, np.full(tuple(images.shape), value))
    chosen = check_choice("fill", fill, (BEST, *FILLS, REFERENCE))
    fills: Mapping[str, Fill] = FILLS
    if reference is not None or chosen == REFERENCE:
        others = _references(images, reference)
        fills = {REFERENCE: partial(_from_reference, others=others), **FILLS}
    names = [chosen] if chosen != BEST else list(fills)[: 1 if model is None else None]
    filled: dict[str, list[Picture]] = {name: [] for name in names}
    for row, (picture, mask) in enumerate(zip(images.double().cpu().numpy(), regions, strict=True)):
        for number, name in enumerate(names):
            share = (row + number / len(names)) / len(images)
            monitor.report(0.9 * share, f"filling {row + 1} of {len(images)}: {name}")
            filled[name].append(fills[name](picture, mask))
    options = {
        name: _placed(images, regions, np.stack(pictures)) for name, pictures in filled.items()
    }
    result = options[names[0]]
    if model is not None and len(names) > 1:
        result = _agreed(model, options, batch_size, monitor.part(0.9, 1.0))
    monitor.report(1.0, f"filled {len(images)} of {len(images)}")
    return result


def check_masks(masks: object, images: Tensor, *, grow: int) -> list[Mask]:
    """One widened mask ``H × W`` for each image.

    Raises:
        TypeError: not a boolean tensor.
        ValueError: another shape, no pixel in a mask, or none left around it.
    """
    count, _, height, width = images.shape
    want = f"a boolean tensor of shape {count} × {height} × {width}, or {height} × {width} for all"
    if not isinstance(masks, Tensor):
        raise TypeError(
            f"masks: got {type(masks).__name__}, want {want}; torch.as_tensor converts an array"
        )
    if masks.dtype is not torch.bool:
        raise TypeError(f"masks: got dtype {masks.dtype}, want {want}; a comparison makes one")
    if tuple(masks.shape) not in {(count, height, width), (height, width)}:
        raise ValueError(f"masks: got shape {tuple(masks.shape)}, want {want}")
    every = masks.detach().expand(count, height, width)
    empty = (~every.flatten(1).any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"masks: got no region for input {empty[0]} ({len(empty)} of {count} such), want at "
            "least one pixel in every mask; leave these inputs out"
        )
    wider = [grown(mask, grow) for mask in every.cpu().numpy()]
    full = [row for row, mask in enumerate(wider) if mask.all()]
    if full:
        raise ValueError(
            f"masks: the one of input {full[0]}, widened by {grow} pixels, covers the whole input "
            f"({len(full)} of {count} such), want pixels left to fill from; mask less of it"
        )
    return wider


def _references(images: Tensor, reference: Inputs | None) -> Picture:
    """All references, ``M × C × H × W``."""
    if reference is None:
        raise ValueError("reference: got None, which fill='reference' cannot do without")
    parts = [batch.double().cpu() for batch in batches("reference", reference, 256, like=images)]
    found: Picture = torch.cat(parts).numpy()
    if len(found) < FEWEST:
        raise ValueError(
            f"reference: got {len(found)} inputs, want at least {FEWEST} to find one that fits"
        )
    return found


def _from_reference(picture: Picture, mask: Mask, others: Picture) -> Picture:
    """The picture with what the reference that fits best has there.

    References that look there as the picture does carry the same corruption, or are the picture
    itself: those at less than a quarter of the median distance are left out.
    """
    width = max(2, round(float(np.sqrt(mask.sum())) / 4))
    around = surroundings(mask, mask, width)
    inside = np.square(others[:, :, mask] - picture[:, mask]).mean(axis=(1, 2))
    outside = np.square(others[:, :, around] - picture[:, around]).mean(axis=(1, 2))
    differs = np.sqrt(inside) > 0.25 * np.median(np.sqrt(inside))
    if not differs.any():
        raise ValueError(
            f"reference: all {len(others)} inputs look within a mask as the masked input does, want "
            "references without the corruption"
        )
    best = int(np.where(differs, outside, np.inf).argmin())
    filled = picture.copy()
    filled[:, mask] = others[best][:, mask]
    return filled


def _agreed(
    model: nn.Module, options: Mapping[str, Tensor], batch_size: int, monitor: Monitor
) -> Tensor:
    """Of each input the first option whose answer is as near to the others' as any."""
    with eval_mode(model) as module:
        headed = with_head(module, next(iter(options.values())))
        answers = torch.stack(
            [
                predict_all(headed, option, batch_size, monitor).softmax(dim=-1).cpu()
                for option in options.values()
            ]
        )
    differ = 0.5 * (answers[:, None] - answers[None]).abs().sum(dim=-1)
    if differ.ndim > 3:  # independent labels: the one that differs most
        differ = differ.amax(dim=-1)
    apart = differ.sum(dim=1)
    apart /= len(options) - 1  # mean distance to the other options' answers, options × N
    first = (apart <= apart.amin(dim=0) + AGREEING).int().argmax(dim=0)
    stacked = torch.stack(list(options.values()))
    return stacked[first.to(stacked.device), torch.arange(len(first), device=stacked.device)]


def _placed(images: Tensor, regions: list[Mask], pictures: Picture) -> Tensor:
    """The images with other pixels in the regions."""
    inside = torch.from_numpy(np.stack(regions)).unsqueeze(1).to(images.device)
    new = torch.from_numpy(pictures).to(device=images.device, dtype=images.dtype)
    return torch.where(inside, new, images)
