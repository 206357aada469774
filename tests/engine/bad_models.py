"""Models that the engine must refuse, or whose errors it must let through.  Imports torch."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.engine.traces import Tiny


class Boom(Exception):  # noqa: N818 - short for what it does
    """What a model, a data set or a hook of the user raises."""


def fails(*_: object) -> None:
    """A hook of the user that raises."""
    raise Boom("out of paper")


class Countdown:
    """Raises `Boom` when it is asked for the ``at``-th time; copies of a model share it."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.asked = 0

    def __deepcopy__(self, memo: dict[int, object]) -> Countdown:
        return self

    def tick(self) -> None:
        self.asked += 1
        if self.asked == self.at:
            raise Boom(f"call {self.asked}")


class Failing(Tiny):
    """Raises in the ``at``-th forward pass, between two layers."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.countdown = Countdown(at)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.first(x)))
        self.countdown.tick()
        x = self.activation(self.second(x))
        return self.head(self.pool(self.activation(self.third(x))).flatten(1))  # type: ignore[no-any-return]


class Answers(Tiny):
    """Answers something else than scores."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(super().forward(x))


class Twice(Tiny):
    """Uses its third layer twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.second(self.activation(self.first(x))))
        x = self.activation(self.third(self.activation(self.third(x))))
        return self.head(self.pool(x).flatten(1))  # type: ignore[no-any-return]


class Unused(Tiny):
    """Has a layer that the forward pass does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(4, 4)


class Halves(nn.Module):
    """Looks at the corrupted corner with one layer and at the opposite one with another."""

    def __init__(self) -> None:
        super().__init__()
        self.corner = nn.Conv2d(3, 4, 3)
        self.opposite = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(8, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        views = self.corner(x[..., :4, :4]), self.opposite(x[..., 4:, 4:])
        return self.head(torch.cat([view.mean(dim=(2, 3)) for view in views], dim=1))  # type: ignore[no-any-return]


class Blind(nn.Module):
    """Does not look at the corrupted corner at all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[..., 4:, 4:]).mean(dim=(2, 3))  # type: ignore[no-any-return]


class Locked(Tiny):
    """Holds a lock, which cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Unique(Tiny):
    """Refuses to be copied in words of its own."""

    def __deepcopy__(self, memo: dict[int, object]) -> Unique:
        raise ValueError("there can be only one")


def shared() -> nn.Module:
    """Two linear layers have one weight."""
    model = Tiny()
    model.pool = nn.AdaptiveAvgPool2d(1)
    head = nn.Linear(6, 6)
    last = nn.Linear(6, 6)
    last.weight = head.weight
    model.head = nn.Sequential(head, nn.ReLU(), last)  # type: ignore[assignment]
    return model.eval()


def lazy() -> nn.Module:
    """A layer that does not know its shape yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: lazy modules are a new feature
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(4)).eval()


def on_meta() -> nn.Module:
    """Weights without data."""
    return Tiny().to("meta")


def half_on_meta() -> nn.Module:
    """The last layer's weight without data."""
    model = Tiny()
    model.head.to("meta")
    return model


def broken(layer: str, value: float = float("nan")) -> Callable[[], nn.Module]:
    """A network with one weight that is not finite."""

    def make() -> nn.Module:
        model = Tiny()
        with torch.no_grad():
            model.get_submodule(layer).weight.view(-1)[0] = value  # type: ignore[operator]
        return model

    return make


def parametrised() -> nn.Module:
    """A layer whose weight is computed from two others."""
    model = Tiny()
    parametrizations.weight_norm(model.third)
    return model


def without_layers() -> nn.Module:
    """Nothing to edit."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Hardtanh(2.0, 3.0))


def wider() -> nn.Module:
    """Another shape of the last layer."""
    model = Tiny()
    model.head = nn.Linear(24, 5)
    return model


def renamed() -> nn.Module:
    """The network inside another module, under other names."""
    return nn.Sequential(Tiny())


def other() -> nn.Module:
    """Other weights."""
    return Tiny(seed=1)
