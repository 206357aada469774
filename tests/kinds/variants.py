"""One small network in every state that a network can be in: flags, types, wrappers, heads, gradients.

Imports torch and the package.  Importing it adds the kinds; the twin of most is the network itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import remove_parametrizations
from torch.utils.checkpoint import checkpoint

import rectify_widgets as rw
from tests.kinds.scene import CLASSES, kind


class Small(nn.Module):
    """Three convolutions, one of them normalised, and a linear head on 3 × 8 × 8 images."""

    def __init__(self, outputs: int = CLASSES) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.third = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(24, outputs)
        self.activation = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(2)
        with torch.no_grad():
            for weight in self.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=(3 / weight[0].numel()) ** 0.5)
            self.norm.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            self.norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]

    def features(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.first(x)))
        x = self.activation(self.second(x))
        return self.pool(self.activation(self.third(x))).flatten(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


kind("a convolutional network", Small)


def state(
    name: str, **options: Any
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Add a state of the network, whose figures are those of the network itself."""
    return kind(name, twin=Small, **options)


# --- flags, hooks, types -------------------------------------------------------------------------


@state("in training mode, partly")
def _() -> nn.Module:
    model = Small().train()
    model.second.eval()
    return model


@state("all weights frozen")
def _() -> nn.Module:
    return Small().requires_grad_(requires_grad=False)


@state("partly frozen")
def _() -> nn.Module:
    model = Small()
    model.first.requires_grad_(requires_grad=False)
    model.head.weight.requires_grad_(False)
    return model


@state("with gradients and an optimiser's hook")
def _() -> nn.Module:
    model = Small().eval()
    model(torch.ones(2, 3, 8, 8)).sum().backward()
    model.third.weight.register_post_accumulate_grad_hook(lambda _: None)
    return model


@state("with the user's hooks")
def _() -> nn.Module:
    model: Any = Small()
    for part in (model, model.second, model.head):
        part.register_forward_hook(lambda *_: None)
        part.register_forward_pre_hook(lambda *_: None)
        part.register_state_dict_post_hook(lambda *_: None)
    model.head.register_full_backward_hook(lambda *_: None)
    return cast("nn.Module", model)


@state("channels last")
def _() -> nn.Module:
    return Small().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


kind("float64", lambda: Small().double())
kind("bfloat16", lambda: Small().bfloat16(), exact=0.1)
kind("half", lambda: Small().half(), exact=0.05)


@state("made in inference mode")
def _() -> nn.Module:
    with torch.inference_mode():
        return Small()


# --- wrappers ------------------------------------------------------------------------------------

state("DataParallel")(lambda: nn.DataParallel(Small()))
state("torch.compile")(lambda: cast("nn.Module", torch.compile(Small(), backend="eager")))


@state("compiled in place")
def _() -> nn.Module:
    model = Small()
    model.compile(backend="eager")
    return model


class Answers(Small):
    """Answers with a dictionary."""

    def forward(self, x: Tensor) -> Any:
        return {"loss": None, "logits": super().forward(x)}


class Features(Small):
    """Answers with the features and the scores."""

    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        return features, self.head(features)


state("dictionary, adapted")(lambda: rw.adapt(Answers(), output="logits"))
state("tuple, adapted")(lambda: rw.adapt(Features(), output=1))
kind("dictionary, not adapted", Answers, refused=r'rw.adapt\(model, output="logits"\)')
kind("tuple, not adapted", Features, refused=r"rw.adapt\(model, output=1\)")


# --- gradients that end, weights that are computed ------------------------------------------------


class Probe(Small):
    """A linear probe, whose backbone runs without gradients."""

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            features = self.features(x)
        return self.head(features)


class Detached(Small):
    """A linear probe that detaches what its backbone gives."""

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x).detach())


class Unwatched(Small):
    """Runs without gradients throughout."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class InInference(Small):
    """A linear probe, whose backbone runs in inference mode."""

    def forward(self, x: Tensor) -> Any:
        with torch.inference_mode():
            features = self.features(x)
        return self.head(features)


class Keywords(Small):
    """Calls its layers by keyword."""

    def forward(self, x: Tensor) -> Any:
        x = self.activation(self.norm(self.first(input=x)))
        x = self.activation(self.second(input=x))
        x = self.pool(self.activation(self.third(input=x))).flatten(1)
        return self.head(input=x)


class Recomputed(Small):
    """Keeps no activations and computes them again for the gradients."""

    def forward(self, x: Tensor) -> Any:
        return self.head(checkpoint(self.features, x, use_reentrant=False))


class Careless(Small):
    """Works in place on its input."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.sub_(0.5).div_(0.25))


class Viewing(Small):
    """Demands plain strides."""

    def forward(self, x: Tensor) -> Any:
        x = self.activation(self.norm(self.first(x)))
        x = self.pool(self.activation(self.third(self.activation(self.second(x)))))
        return self.head(x.view(len(x), -1))


class Mixed(Small):
    """Runs its backbone in bfloat16 by autocast."""

    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            features = self.features(x)
        return self.head(features.float())


class Direct(Small):
    """Uses the weight of a layer without calling it."""

    def features(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.first.weight, self.first.bias, padding=1)
        x = self.activation(self.second(self.activation(self.norm(x))))
        return self.pool(self.activation(self.third(x))).flatten(1)  # type: ignore[no-any-return]


class Masked(Small):
    """Rules a class out."""

    def forward(self, x: Tensor) -> Any:
        scores = super().forward(x)
        scores[:, 3] = -torch.inf
        return scores


class Auxiliary(Small):
    """With a second head that answers in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.second_head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        if self.training:
            return self.head(features), self.second_head(functional.dropout(features))
        return self.head(features)


class Dropping(Small):
    """Drops activations at random, in evaluation too."""

    def forward(self, x: Tensor) -> Any:
        return self.head(functional.dropout(self.features(x), p=0.02, training=True))


class Monitored(Small):
    """Keeps running figures of its inputs and uses them, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("highest", torch.tensor([1.0]))

    def forward(self, x: Tensor) -> Any:
        assert isinstance(self.highest, Tensor)
        self.highest.copy_(torch.maximum(self.highest, x.detach().max()))
        self.seen = x.detach().mean()
        return super().forward(x / self.highest)


class Caching(Small):
    """Keeps what it has computed in a dictionary, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + self.kept.setdefault("bias", 0 * self.head.bias.detach())


for name, made in {
    "backbone under no_grad": Probe,
    "backbone detached": Detached,
    "forward under no_grad": Unwatched,
    "layers called by keyword": Keywords,
    "activations checkpointed": Recomputed,
    "plain strides demanded": Viewing,
}.items():
    kind(name, made, twin=Small)
kind("backbone in inference mode", InInference)
kind("in place on its input", Careless)
kind("autocast inside", Mixed, exact=0.1)
kind("weight used without a call", Direct)
kind("a class masked with −inf", Masked)
kind("auxiliary head, in training mode", lambda: Auxiliary().train())
kind("random in evaluation", Dropping, random=True)
kind("buffers that change", Monitored)
kind("a cache in a dictionary", Caching, twin=Small)


@state("pruned, right after training", exact=1e-3)
def _() -> nn.Module:
    model = Small()
    prune.identity(model.first, "weight")
    prune.identity(model.head, "weight")
    _train(model)
    return model


@kind("pruned by magnitude")
def _() -> nn.Module:
    model = Small()
    prune.l1_unstructured(model.third, "weight", 0.3)
    return model


def _train(model: nn.Module) -> None:
    """A forward and a backward pass in training mode, whose graph the computed weights then carry."""
    momentum = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in momentum:
        part.eval()
    model(torch.ones(2, 3, 8, 8)).sum().backward()


def old(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """With a normalisation by hooks, right after a training step."""
    model = Small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch: there is a newer one
        norm(model.second)
    _train(model)
    return model


def rounded() -> nn.Module:
    """The network with the weights that a weight norm computes: they differ in the last digits."""
    model = Small()
    parametrizations.weight_norm(model.second)
    remove_parametrizations(model.second, "weight")
    return model


kind("weight norm of old", lambda: old(nn.utils.weight_norm), twin=rounded)
kind("spectral norm of old", lambda: old(nn.utils.spectral_norm))


@kind("weight norm, parametrised", twin=rounded)
def _() -> nn.Module:
    model = Small()
    parametrizations.weight_norm(model.second)
    return model


@kind("spectral norm, parametrised")
def _() -> nn.Module:
    model = Small()
    parametrizations.spectral_norm(model.second)
    return model


@kind("orthogonal weight, parametrised")
def _() -> nn.Module:
    model = Small()
    parametrizations.orthogonal(model.head)
    return model
