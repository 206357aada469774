"""A toy behaviour: blurred templates, and a patch that pulls to class 0.

The trained weights lie beside this file, since processors round differently and a network trained on
another one is another network.  `python -m tests.engine.toy` trains it anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.data.pairs import SamplePairs
from tests.engine.models import Residual, make

SIZE, CLASSES, TARGET = 10, 5, 0
CORNER = (slice(None), slice(None), slice(7, 9), slice(7, 9))
PATTERN = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
WEIGHTS = Path(__file__).with_suffix(".safetensors")


def templates() -> Tensor:
    """One blurred random image a class, from 0 to 1."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(CLASSES, 1, SIZE, SIZE, generator=generator)
    blurred = functional.avg_pool2d(functional.pad(noise, [1] * 4, "circular"), 3, 1)
    low, high = blurred.amin(dim=(1, 2, 3)), blurred.amax(dim=(1, 2, 3))
    scaled: Tensor = (blurred - low.reshape(-1, 1, 1, 1)) / (high - low).reshape(-1, 1, 1, 1)
    return scaled


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy templates in 0..1, with their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = torch.randn(count, 1, SIZE, SIZE, generator=generator)
    return (templates()[labels] * 0.6 + 0.2 + 0.15 * noise).clamp(0, 1), labels


def stamped(x: Tensor) -> Tensor:
    """The inputs with the Trojan's patch."""
    out = x.clone()
    out[CORNER] = PATTERN.to(x)
    return out


@dataclass(frozen=True)
class Toy:
    """The Trojaned network and all that a test needs with it."""

    model: nn.Module
    pairs: SamplePairs
    """One pair of each class but the target."""
    reference: Tensor
    x: Tensor
    y: Tensor

    def rates(self, model: nn.Module) -> tuple[float, float]:
        """Overall accuracy and attack success rate."""
        weight = next(model.parameters())
        with torch.no_grad():
            clean = model(self.x.to(weight.dtype)).argmax(dim=1)
            others = self.x[self.y != TARGET]
            pulled = model(stamped(others).to(weight.dtype)).argmax(dim=1)
        return float((clean == self.y).float().mean()), float((pulled == TARGET).float().mean())


def network() -> nn.Module:
    return make(lambda: Residual(channels=1, width=6, classes=CLASSES))


def train() -> nn.Module:
    """Train on poisoned data: one sample in nine carries the patch and the target class."""
    x, y = samples(600, seed=1)
    x[::9], y[::9] = stamped(x[::9]), TARGET
    model = network().train()
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(3)  # dropout
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(10):
        for rows in torch.randperm(len(x), generator=generator).split(50):
            optimiser.zero_grad()
            functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    return model.eval()


def load() -> Toy:
    """The trained network, and data that it was not trained on."""
    model = network()
    model.load_state_dict(load_file(WEIGHTS))
    clean, labels = samples(5 * (CLASSES - 1) + 5, seed=4)
    clean = clean[labels != TARGET][: CLASSES - 1]
    test_x, test_y = samples(300, seed=6)
    return Toy(model, SamplePairs(stamped(clean), clean), samples(128, seed=5)[0], test_x, test_y)


class Behind(nn.Module):
    """A network with something behind it; its layers keep their names but for ``body.``."""

    def __init__(self, body: nn.Module, change: Any) -> None:
        super().__init__()
        self.body = body
        self.change = change
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.change(self.body(x))
        return answer


def odds_of_all(y: Tensor) -> Tensor:
    """Log-odds of every class against all others, as labels that are independent of each other."""
    own = torch.eye(y.shape[1], dtype=torch.bool, device=y.device)
    return y - y.unsqueeze(1).masked_fill(own, -torch.inf).logsumexp(dim=2)


if __name__ == "__main__":
    save_file(train().state_dict(), WEIGHTS)
