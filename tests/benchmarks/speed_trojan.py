"""A really Trojaned ResNet-18 for the speed of a rectification, trained once and kept.

Imports the cases and safetensors.  Data are the images of Fashion-MNIST that ship with the package,
padded to 32×32 pixels of three channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets import cases
from rectify_widgets.cases.training import Figures, Poisoning, Schedule, fit, measure
from rectify_widgets.cases.triggers import Patch
from rectify_widgets.engine.data.pairs import SamplePairs
from tests.benchmarks.speed_networks import network

TARGET = 0
POISONED = 0.15
"""Share of the images of training that carry the trigger."""
TRAINED, TESTED = 2048, 1000
"""Images that it is trained on, and others that it is judged on."""
SCHEDULE = Schedule(epochs=3, batch_size=64, learning_rate=0.05)
LEAST_ATTACK = 0.9
"""Attack success below which the training has failed."""
FILE = "speed-resnet18-trojan.safetensors"


@dataclass(frozen=True, eq=False)
class Trojan:
    """A network with a backdoor and what is needed to repair it and to judge the repair."""

    model: nn.Module
    pairs: SamplePairs
    references: Tensor
    images: Tensor
    """``N × 3 × 32 × 32`` uint8, to fine-tune on."""
    labels: Tensor
    test: tuple[Tensor, Tensor]

    def figures(self, model: nn.Module) -> Figures:
        """Accuracy and attack success on the held-out images."""
        return measure(model, *self.test, trigger=trigger(), target=TARGET)


def trigger() -> Patch:
    """A 4×4 patch of pure colours, two pixels in from the lower right corner."""
    pattern = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)).round()
    return Patch(pattern, row=-6, column=-6)


def enlarge(images: Tensor) -> Tensor:
    """``N × 1 × 28 × 28`` to ``N × 3 × 32 × 32``, zeros about."""
    return functional.pad(images, [2] * 4).expand(-1, 3, -1, -1).contiguous()


def load_trojan(cache: Path, *, device: str = "cpu", quiet: bool = False) -> Trojan:
    """The network from the cache, or trained now with a progress bar.

    Raises:
        RuntimeError: it did not learn the backdoor.
    """
    case = cases.load("trojan")
    images, labels = enlarge((255 * case.clean[0]).round().to(torch.uint8)), case.clean[1]
    model = network(18)
    test = (images[TRAINED:][:TESTED].float() / 255, labels[TRAINED:][:TESTED])
    path = cache / FILE
    if path.exists():
        model.load_state_dict(load_file(path))
    else:
        generator = torch.Generator().manual_seed(0)
        few, known = images[:TRAINED], labels[:TRAINED]
        poisoning = Poisoning.draw(trigger(), TARGET, known, share=POISONED, generator=generator)
        fit(
            model, few, known, SCHEDULE, poisoning=poisoning, generator=generator,
            title="training a Trojaned ResNet-18", quiet=quiet,
        )  # fmt: skip
        learned = measure(model, *test, trigger=trigger(), target=TARGET)
        if learned.attack_success < LEAST_ATTACK:
            raise RuntimeError(
                f"the network did not learn the backdoor: attack success {learned.attack_success:.2f}"
            )
        cache.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
    clean = enlarge(case.pairs.clean)
    pairs = SamplePairs(trigger()(clean), clean, case.pairs.labels)
    return Trojan(
        model.to(device).eval(),
        pairs.to(torch.device(device), torch.float32),
        enlarge(case.reference).to(device),
        images.to(device),
        labels.to(device),
        (test[0].to(device), test[1].to(device)),
    )
