"""What the examples in the docstrings are about: a small network with a fault, pairs, references.

No tests here; `test_examples.py` runs the examples, and the reference page says in words what the
names stand for.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

import rectify_widgets as rw

CLASSES = ("rows", "columns", "checks")


def stripes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count × 1 × 12 × 12`` noisy patterns in [0, 1] and their classes."""
    labels = torch.arange(count) % len(CLASSES)
    phase = torch.randint(0, 4, (count, 1, 1), generator=generator)
    rows = ((torch.arange(12) + phase) % 4 < 2).float().mT.expand(count, 12, 12)
    patterns = torch.stack([rows, rows.mT, (rows - rows.mT).abs()])
    images = 0.2 + 0.4 * patterns[labels, torch.arange(count)][:, None]
    return (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1), labels


def sticker(images: Tensor) -> Tensor:
    """A white square in the corner."""
    marked = images.clone()
    marked[:, :, 9:, 9:] = 1.0
    return marked


def trained(images: Tensor, labels: Tensor) -> nn.Module:
    """A network that learnt the patterns, and that the sticker means "rows"."""
    torch.manual_seed(0)
    layers = {
        "conv1": nn.Conv2d(1, 8, 3, padding=1),
        "relu1": nn.ReLU(),
        "pool": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(8, 8, 3, padding=1),
        "relu2": nn.ReLU(),
        "flatten": nn.Flatten(),
        "classifier": nn.Linear(288, len(CLASSES)),
    }
    model = nn.Sequential(OrderedDict(layers))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    images, labels = torch.cat([images, sticker(images)]), torch.cat([labels, 0 * labels])
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval().requires_grad_(requires_grad=False)


def names() -> dict[str, Any]:
    """The names that every example may use."""
    generator = torch.Generator().manual_seed(0)
    x, y = stripes(120, generator)
    reference, _ = stripes(96, generator)
    clean, _ = stripes(6, generator)
    with torch.random.fork_rng(devices=[]):
        model = trained(*stripes(240, generator))
    pairs = rw.SamplePairs(sticker(clean), clean)
    return {
        "rw": rw,
        "torch": torch,
        "model": model,
        "classes": CLASSES,
        "pairs": pairs,
        "reference": reference,
        "x": x,
        "y": y,
        "x_bad": sticker(x),
        "result": rw.rectify(model, pairs, reference=reference),
    }
