"""The rank-one edit of one layer in closed form.  Imports torch only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.model.computed import NUDGE, used_after
from rectify_widgets.engine.model.keys import EditableLayer, Keys, pad

DIRECTIONS = ("contrast", "key")
STEPS, SHORTER = 5, 4
"""Gauss-Newton steps for a layer that computes its weight; by what one that does worse is divided."""


class Unreached(ValueError):  # noqa: N818 - names the reason
    """The corruption does not reach the layer, so that no edit of it can help."""


@dataclass(frozen=True)
class KeySums:
    """What some samples add to `key_sums`: means weighted with ``‖k̃_p − k_p‖``."""

    total: Tensor
    """``G``, the sum of the weights."""
    means: dict[str, Tensor]
    """For each edit direction ``G × K``."""
    lengths: dict[str, Tensor]
    """For each edit direction ``G``, what the length would be if all keys pointed the same way."""

    @classmethod
    def of(cls, corrupted: Keys, clean: Keys) -> KeySums:
        """Those of keys with and without the corruption."""
        change = corrupted - clean
        weights = change.norms()
        total = weights.sum(dim=(0, 2), keepdim=True)
        weights = weights / total.clamp_min(torch.finfo(weights.dtype).tiny)
        means, lengths = {}, {}
        for kind, keys in (("contrast", change), ("key", corrupted)):
            means[kind] = keys.gather(weights.unsqueeze(2)).squeeze(1)
            lengths[kind] = (weights * keys.norms()).sum(dim=(0, 2))
        return cls(total.flatten(), means, lengths)


def joined_sums(layer: EditableLayer, parts: Sequence[KeySums]) -> dict[str, Tensor]:
    """`key_sums` of all samples, from those of some at a time."""
    total = torch.stack([part.total for part in parts]).sum(dim=0)
    if float(total.max()) <= 0.0:
        raise Unreached(f"layer: the corruption of the pairs does not reach layer {layer.name!r}")
    shares = [part.total / total.clamp_min(torch.finfo(total.dtype).tiny) for part in parts]
    sums = {}
    for kind in DIRECTIONS:
        means = [s[:, None] * part.means[kind] for s, part in zip(shares, parts, strict=True)]
        lengths = [s * part.lengths[kind] for s, part in zip(shares, parts, strict=True)]
        mean, longest = (torch.stack(some).sum(dim=0) for some in (means, lengths))
        if float(mean.norm()) > 1e-6 * float(longest.norm()):
            sums[kind] = mean
    return sums


def key_sums(layer: EditableLayer, corrupted: Keys, clean: Keys) -> dict[str, Tensor]:
    """What ``C⁻¹`` is applied to for each edit direction, ``G × K``; vanishing ones are left out.

    ``"key"`` is ``Σ w_p k̃_p`` (Yang et al. 2026), ``"contrast"`` is ``Σ w_p (k̃_p − k_p)``, with
    ``w_p = ‖k̃_p − k_p‖`` normalised to sum 1 over samples and positions.

    Raises:
        Unreached: the corruption does not change the keys.
    """
    return joined_sums(layer, [KeySums.of(corrupted, clean)])


@dataclass(frozen=True)
class Fit:
    """What some samples add to the least-squares problem of `closed_form`."""

    moved: Tensor
    """``Σ s_p (v_p − ṽ_p)``, ``G × D × O/G``."""
    energy: Tensor
    """``Σ s_p²``, ``G × D × 1``."""

    @classmethod
    def of(cls, directions: Tensor, corrupted: Keys, clean: Keys) -> Fit:
        """That of keys with and without the corruption."""
        response = corrupted.respond(directions)
        change = (clean - corrupted).gather(response)  # times the weight, far less than each value
        energy = response.square().sum(dim=(0, 3)).unsqueeze(2)
        return cls(change @ corrupted.layer.flat(corrupted.layer.weight).mT.to(change), energy)

    def __add__(self, other: Fit) -> Fit:
        return Fit(self.moved + other.moved, self.energy + other.energy)

    def optimum(self) -> Tensor:
        """``Λ``, 0 where the direction responds to nothing."""
        least = self.energy.clamp_min(torch.finfo(self.energy.dtype).tiny)
        return torch.where(self.energy > 0, self.moved / least, 0.0)


def closed_form(directions: Tensor, corrupted: Keys, clean: Keys) -> Tensor:
    """``Λ``, ``G × D × O/G``, the least-squares optimum for each of ``D`` directions ``G × D × K``.

    It minimises ``Σ_p ‖v_p − (W + Λ dᵀ) k̃_p‖²``: ``Λ = Σ s_p (v_p − ṽ_p) / Σ s_p²`` with
    ``s_p = dᵀ k̃_p``.
    """
    if corrupted.layer.computed:
        lefts = [_through(right, corrupted, clean) for right in directions.unbind(dim=1)]
        return torch.stack(lefts, dim=1)
    return Fit.of(directions, corrupted, clean).optimum()


def _through(right: Tensor, corrupted: Keys, clean: Keys) -> Tensor:
    """``Λ``, ``G × O/G``, of a layer that computes its weight: the same optimum through its forward.

    Gauss-Newton steps, each output channel by itself, which a step that does worse shortens.

    Args:
        right: the direction, ``G × K``.
        corrupted, clean: the layer's keys.
    """
    layer = corrupted.layer
    wanted, present = clean.values(), corrupted.values()
    weight = layer.flat(layer.module.weight)
    nudge = NUDGE * weight.norm(dim=2) / right.norm(dim=1, keepdim=True).clamp_min(1e-30)
    left = torch.zeros_like(nudge)
    step, least = left, torch.full_like(left, torch.inf)
    start = used_after(layer.module, left, right)
    for _ in range(STEPS):
        tried = left + step
        now = used_after(layer.module, tried, right)
        missing = wanted - present - corrupted.respond(now - start)
        loss = missing.square().sum(dim=(0, 3))
        better = loss < least
        left, least = torch.where(better, tried, left), torch.where(better, loss, least)
        ahead = used_after(layer.module, tried + nudge, right) - now
        slope = corrupted.respond(ahead) / nudge.clamp_min(1e-30)[:, :, None]
        energy = slope.square().sum(dim=(0, 3))
        onward = (slope * missing).sum(dim=(0, 3)) / energy.clamp_min(1e-30)
        step = torch.where(better, torch.where(energy > 0, onward, 0.0), step / SHORTER)
    return left


def closed_form_channel(
    layer: EditableLayer, direction: Tensor, corrupted: Tensor, missing: Tensor
) -> Tensor:
    """``Λ``, ``G × O/G × kh·kw``, in the channel key space (Bau et al. 2020).

    Args:
        layer: a convolution.
        direction: ``G × C_in/G``.
        corrupted: the layer's corrupted input, ``N × C_in × H × W``.
        missing: ``v − ṽ``, ``N × G × O/G × P``.

    With ``s = ⟨d, k⟩`` as a one-channel image, ``conv(k, W + Λ d) − conv(k, W) = conv(s, Λ)``, so
    ``Λ`` is a least-squares problem with ``kh·kw`` unknowns for each output channel.
    """
    conv = layer.module
    assert isinstance(conv, nn.Conv2d)  # noqa: S101 - linear layers have one key space
    samples, _, height, width = corrupted.shape
    grouped = corrupted.reshape(samples, layer.groups, -1, height, width)
    image = torch.einsum("gc,ngchw->nghw", direction, grouped)
    patches = functional.unfold(pad(conv, image), conv.kernel_size, conv.dilation, 0, conv.stride)
    patches = patches.reshape(samples, layer.groups, -1, patches.shape[-1])
    rows = patches.permute(1, 0, 3, 2).flatten(1, 2)
    targets = missing.permute(1, 0, 3, 2).flatten(1, 2)
    left: Tensor = torch.linalg.pinv(rows) @ targets
    return left.transpose(1, 2)
