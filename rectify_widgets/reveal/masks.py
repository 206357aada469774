"""Which pixels carry a model's answer?  Imports the engine, `explain` and `regions`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_int, check_number
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.model.running import (
    chunk_size,
    eval_mode,
    model_device,
    model_dtype,
    with_head,
)
from rectify_widgets.explain import attribute, check_images
from rectify_widgets.reveal.regions import RegionSearch

STEPS = 16
"""Points of the path of integrated gradients."""


class SuggestedMasks(Tensor):
    """Result of `suggest_masks`: a boolean tensor ``N × H × W`` that knows how it came about.

    What is computed from it is a plain tensor.

    Attributes:
        figures: ``N`` log-odds (natural logarithm) of the model's original answer with the region
            covered, the median over three fills; where nothing was found, the smallest that any
            covered window gives.
        before: ``N`` log-odds of the answer with nothing covered.
        answers: ``N`` class numbers that the model gives the inputs.
        found: ``N`` booleans; where False the mask is empty, since nothing local carries the answer.

    Example:
        >>> masks = rw.suggest_masks(model, pairs.corrupted)
        >>> masks.shape, masks.found
        (torch.Size([6, 12, 12]), tensor([False,  True,  True, False,  True,  True]))
    """

    figures: Tensor
    before: Tensor
    answers: Tensor
    found: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # noqa: SLF001 - results are plain

    @classmethod
    def of(cls, masks: Tensor, figures: Tensor, before: Tensor, answers: Tensor) -> SuggestedMasks:
        """The masks with their figures."""
        made = torch.Tensor._make_subclass(cls, masks)  # noqa: SLF001 - the way to subclass
        made.figures, made.before, made.answers = figures, before, answers
        made.found = masks.flatten(1).any(dim=1)
        return made

    def __deepcopy__(self, memo: object) -> SuggestedMasks:
        return SuggestedMasks.of(self.clone(), self.figures, self.before, self.answers)

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        count = int(self.found.sum())
        text = f"SuggestedMasks({count} of {len(self)} inputs have a region that carries the answer"
        if not count:
            return text + ": nothing local does)"
        area = self[self.found].double().mean(dim=(1, 2)).median()
        odds = self.figures[self.found].median()
        return f"{text}; median area {100 * area:.1f} %, log-odds without it {odds:+.1f})"


def suggest_masks(
    model: nn.Module,
    inputs: Tensor,
    *,
    keep: float = 0.9,
    batch_size: int | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> SuggestedMasks:
    """Suggest for each input what to paint out so that the model's answer changes.

    Square windows are covered, large ones everywhere, small ones where a larger one changed the
    answer or where integrated gradients are largest.  From the smallest that change the answer a
    rectangle is cut out: of a wider box side after side is taken off, as long as covering the rest
    changes the answer and the rest, alone in the covered box, restores the share ``keep`` of the
    log-odds; once more, of a box that is little wider than what was left.  Covering is judged with
    several fills, so that it is no artefact of one of them.  Where half of the inputs or more, at
    least three, have nearly the same region, the median of theirs becomes the region of every
    input whose answer changes with it covered: inputs with one artefact in one place are better
    asked about together.

    Args:
        model: maps ``N × C × H × W`` inputs to ``N × classes`` scores; left as it was.
        inputs: ``N × C × H × W``, floating point, in the model's input space.
        keep: share of the log-odds that the region must restore, 0 to 1; a smaller one gives
            smaller regions.
        batch_size: inputs in one forward pass; None takes what suits their size.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

    Returns:
        A boolean tensor ``N × H × W`` with ``.figures`` and ``.found``, see `SuggestedMasks`, which
        `cleanse` takes (it widens the regions by a pixel).  Where nothing smaller than a quarter of
        the input carries the answer, ``.found`` is False and the mask empty.  A part of an object
        may carry an answer as an artefact does: only other inputs tell these two apart.

    Raises:
        TypeError, ValueError: bad input.
        Cancelled: ``cancel`` returned True.

    Example:
        >>> masks = rw.suggest_masks(model, pairs.corrupted)
        >>> masks
        SuggestedMasks(4 of 6 inputs have a region that carries the answer; median area ...
        >>> clean = rw.cleanse(pairs.corrupted[masks.found], masks[masks.found], model=model)
    """
    images = check_images(inputs)
    check_number("keep", keep, low=0.0, high=1.0)
    if min(images.shape[-2:]) < 4:
        raise ValueError(f"inputs: got shape {tuple(images.shape)}, want at least 4 × 4 pixels")
    if batch_size is not None:
        check_int("batch_size", batch_size, low=1)
    monitor = Monitor(progress, cancel)
    with eval_mode(model) as module:
        placed = images.to(device=model_device(module), dtype=model_dtype(module))
        size = batch_size or chunk_size(placed, placed.device)
        headed = with_head(module, placed)
        search = RegionSearch(headed, placed, size)
        part = monitor.part(0.0, 0.1)
        maps = attribute(
            headed, images, steps=STEPS, batch_size=size, progress=part.report, cancel=cancel
        )
        seeds, least = search.screen(maps.to(placed), monitor.part(0.1, 0.6))
        boxes = search.cut(seeds, keep, monitor.part(0.6, 0.95))
        boxes = search.agree(boxes, monitor.part(0.95, 1.0))
        figures = search.figures(boxes, least, monitor)
    monitor.report(1.0, f"searched {len(images)} inputs")
    masks = torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool, device=images.device)
    for row, (top, left, bottom, right) in boxes.items():
        masks[row, top:bottom, left:right] = True
    return SuggestedMasks.of(masks, figures.cpu(), search.before.cpu(), search.classes.cpu())
