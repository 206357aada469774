"""Neural Cleanse as a peer: Wang et al. 2019, IEEE S&P, sections IV and V.  Imports torch and the engine.

A mask and a pattern, both behind a sigmoid, are fitted to each class in turn with Adam; the weight of the mask's
L1 norm goes up by half where enough references are turned and down where not, as in the paper.  What
differs: ``STEPS`` steps of 32 references a class (the paper makes passes over the whole training
set), so that the time is comparable with that of the search that it stands beside.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.model.running import eval_mode, predict, predict_all

STEPS, BATCH, RATE = 300, 32, 0.1
WEIGHT, FACTOR, WANTED, WAIT = 1e-3, 1.5, 0.95, 5
"""First weight of the L1 norm, what it is multiplied by, share turned, steps before it changes."""


def neural_cleanse(model: nn.Module, reference: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """L1 norm of the mask of each class, and its anomaly index, positive below the median."""
    with eval_mode(model) as module:
        count = predict_all(module, reference[:1]).shape[1]
        sizes = torch.tensor([_mask(module, reference, one, seed) for one in range(count)])
    apart = sizes.median() - sizes
    return sizes, apart / (1.4826 * apart.abs().median()).clamp_min(1e-12)


def _mask(model: nn.Module, images: Tensor, target: int, seed: int) -> float:
    """L1 norm of the smallest mask that turned enough; of the last one where none did."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randn(images.shape[-2:], generator=generator).requires_grad_()
    pattern = torch.randn(images.shape[1:], generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([mask, pattern], lr=RATE, betas=(0.5, 0.9))
    goals = torch.full((BATCH,), target)
    weight, best, size, shares = WEIGHT, float("inf"), 0.0, list[float]()
    for _ in range(STEPS):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        with torch.enable_grad():
            opacity = mask.sigmoid()
            scores = predict(model, images[rows] * (1 - opacity) + opacity * pattern.sigmoid())
            norm = opacity.sum()
            loss = functional.cross_entropy(scores, goals) + weight * norm
            optimizer.zero_grad()
            mask.grad, pattern.grad = torch.autograd.grad(loss, [mask, pattern])
            optimizer.step()
        size = float(norm)
        shares.append(float((scores.argmax(dim=1) == target).float().mean()))
        recent = shares[-WAIT:]
        if len(recent) == WAIT:
            turned = sum(recent) / WAIT >= WANTED
            best = min(best, size) if turned else best
            weight *= FACTOR if turned else 1 / FACTOR
            shares.clear()
    return size if best == float("inf") else best
