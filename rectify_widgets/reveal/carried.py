"""What the members of a cluster carry, as an operator.  Imports the engine, `latent`, `shrinking`.

A member's look-alike is another object, so that pairs of the two show no corruption pixel by pixel.
What they show together is how the distribution of the members differs from that of the look-alikes.
Each form is fitted to that: an added pattern to the means, a blend to means and variances, a tone curve
to the sorted values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.corruption import Corruption
from rectify_widgets.engine.data.forms import Pattern
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.data.tones import fit_tone_curve
from rectify_widgets.reveal.latent import LastLayer
from rectify_widgets.reveal.shrinking import Blend

CARRIED = 0.5
"""Share of the difference in front of the last layer that an operator has to make, at least."""


def carried(
    model: nn.Module,
    members: Tensor,
    lookalikes: Tensor,
    limits: tuple[Tensor, Tensor],
    monitor: Monitor,
) -> Corruption | None:
    """The form that makes of the look-alikes what the model sees in the members; None if none does.

    The mean of what goes into the last layer decides: an operator has to come nearer to that of the
    members than half of the way.

    Args:
        model: in evaluation mode, its head read by `with_head`.
        members, lookalikes: ``K × C × H × W``, on the model's device.
        limits: least and greatest value of each channel, see `data_range`.
        monitor: progress and cancellation.
    """

    def seen(images: Tensor) -> Tensor:
        return torch.from_numpy(LastLayer.of(model, images, monitor).features.mean(axis=0))

    wanted = seen(members)
    furthest = CARRIED * float((wanted - seen(lookalikes)).norm())
    forms = _forms(members, lookalikes, *limits)
    missed = [float((wanted - seen(one(lookalikes))).norm()) for one in forms]
    best = min(range(len(forms)), key=missed.__getitem__)
    return forms[best] if missed[best] <= furthest else None


def _forms(members: Tensor, lookalikes: Tensor, low: Tensor, high: Tensor) -> list[Corruption]:
    """Each form, fitted to the distributions of members and look-alikes."""
    mean, before = members.mean(dim=0), lookalikes.mean(dim=0)
    ratio = members.var(dim=0).sum() / lookalikes.var(dim=0).sum().clamp_min(1e-12)
    kept = float(ratio.sqrt().clamp(max=1.0))
    mixed = mean - kept * before - (1.0 - kept) * low
    up = (mixed / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0 - kept)
    forms: list[Corruption] = [
        Pattern(mean - before, low=low, high=high),
        Blend(up, 1.0 - kept - up, low, high),
    ]
    after, given = _sorted(members), _sorted(lookalikes)
    if torch.equal(after, given):  # the same values elsewhere
        return forms
    return [*forms, fit_tone_curve(SamplePairs(after, given), low, high)]


def _sorted(images: Tensor) -> Tensor:
    """The values of each channel in ascending order, ``1 × C × K H W × 1``."""
    return images.movedim(1, 0).flatten(1).sort(dim=1).values[None, :, :, None]
