"""The rank-one edit of one layer in closed form.  Imports torch only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.model.keys import EditableLayer, Keys, pad

DIRECTIONS = ("contrast", "key")


class Unreached(ValueError):  # noqa: N818 - names the reason
    """The corruption does not reach the layer, so that no edit of it can help."""


def key_sums(layer: EditableLayer, corrupted: Keys, clean: Keys) -> dict[str, Tensor]:
    """What ``C⁻¹`` is applied to for each edit direction, ``G × K``; vanishing ones are left out.

    ``"key"`` is ``Σ w_p k̃_p`` (Yang et al. 2026), ``"contrast"`` is ``Σ w_p (k̃_p − k_p)``, with
    ``w_p = ‖k̃_p − k_p‖`` normalised to sum 1 over samples and positions.

    Raises:
        Unreached: the corruption does not change the keys.
    """
    change = corrupted - clean
    weights = change.norms()
    total = weights.sum(dim=(0, 2), keepdim=True)
    if float(total.max()) <= 0.0:
        raise Unreached(f"layer: the corruption of the pairs does not reach layer {layer.name!r}")
    weights = weights / total.clamp_min(torch.finfo(weights.dtype).tiny)
    sums = {}
    for kind, keys in (("contrast", change), ("key", corrupted)):
        mean = keys.gather(weights.unsqueeze(2)).squeeze(1)
        longest = (weights * keys.norms()).sum(dim=(0, 2))
        if float(mean.norm()) > 1e-6 * float(longest.norm()):
            sums[kind] = mean
    return sums


def closed_form(directions: Tensor, corrupted: Keys, clean: Keys) -> Tensor:
    """``Λ``, ``G × D × O/G``, the least-squares optimum for each of ``D`` directions ``G × D × K``.

    It minimises ``Σ_p ‖v_p − (W + Λ dᵀ) k̃_p‖²``: ``Λ = Σ s_p (v_p − ṽ_p) / Σ s_p²`` with
    ``s_p = dᵀ k̃_p``.
    """
    response = corrupted.respond(directions)
    missing = (clean - corrupted).values()
    energy = response.square().sum(dim=(0, 3)).unsqueeze(2)
    moved = torch.einsum("ngdp,ngop->gdo", response, missing)
    return torch.where(energy > 0, moved / energy.clamp_min(torch.finfo(energy.dtype).tiny), 0.0)


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
