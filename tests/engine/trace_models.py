"""Models on which a call could easily leave a trace.  Imports torch and the package.

`MODELS` holds what makes each of them, by name.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

import rectify_widgets as rw
from tests.engine.traces import Tiny, images


class Careless(Tiny):
    """Normalises its input in place, as hand-written preprocessing does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).div_(0.25))


class Dropping(Tiny):
    """Has dropout layers, and drops at random even in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(super().forward(self.drop(x)), p=0.1, training=True)
        return x + 0.0 * torch.rand_like(x)


class Gambling(Tiny):
    """Draws from numpy and Python."""

    def forward(self, x: Tensor) -> Tensor:
        noise = np.random.rand() + random.random()  # noqa: NPY002 - the global state is the point
        return super().forward(x) + 1e-3 * noise


def training() -> nn.Module:
    """Handed over in training mode, with batch statistics to spoil, one part left in evaluation."""
    model = Tiny().train()
    model.second.eval()
    return model


def frozen() -> nn.Module:
    """Some weights want no gradient."""
    model = Tiny()
    model.first.requires_grad_(requires_grad=False)
    model.head.weight.requires_grad_(False)
    return model


def half_trained() -> nn.Module:
    """Carries gradients of a backward pass, and an optimiser has hooked onto them."""
    model = Tiny()
    model(images(2)).sum().backward()
    model.third.weight.register_post_accumulate_grad_hook(lambda _: None)
    return model


def hooked() -> nn.Module:
    """Carries the user's own hooks of every kind."""
    model: Any = Tiny()
    for part in (model, model.second, model.head):
        part.register_forward_hook(lambda *_: None)
        part.register_forward_hook(lambda *_, **__: None, with_kwargs=True, always_call=True)
        part.register_forward_pre_hook(lambda *_: None)
        part.register_state_dict_post_hook(lambda *_: None)
        part.register_state_dict_pre_hook(lambda *_: None)
        part.register_load_state_dict_pre_hook(lambda *_: None)
        part.register_load_state_dict_post_hook(lambda *_: None)
    model.head.register_full_backward_hook(lambda *_: None)
    model.head.register_full_backward_pre_hook(lambda *_: None)
    model.third.weight.register_hook(lambda gradient: gradient)
    return model  # type: ignore[no-any-return]


def compiled() -> nn.Module:
    """Behind torch.compile; the engine runs it eagerly."""
    return cast("nn.Module", torch.compile(Tiny(), backend="eager"))


def compiled_in_place() -> nn.Module:
    """Compiled as ``module.compile()`` does."""
    model = Tiny()
    model.compile(backend="eager")
    return model


def parallel() -> nn.Module:
    """Behind DataParallel."""
    return nn.DataParallel(Tiny())


class Observing(Tiny):
    """Notes what it sees in buffers and attributes and uses it, as quantisation-aware models do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("highest", torch.tensor([1.0]))
        self.register_buffer("cache", None)
        self.scale = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.highest, Tensor)
        self.highest.copy_(torch.maximum(self.highest, x.detach().max()))
        self.cache = x.detach().clone()
        self.scale = self.highest * 1.01
        self.seen = x.detach().mean()
        levels = self.highest / 127
        rounded = (x / levels).round() * levels
        return super().forward(x + (rounded - x).detach())


def pruned() -> nn.Module:
    """Weights that hooks compute before each pass and that carry the graph of the last one."""
    model = Tiny()
    prune.l1_unstructured(model.first, "weight", 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch: there is a newer one
        nn.utils.spectral_norm(model.head)
    with torch.no_grad():
        model.head.bias[0] -= 4  # a score below 0, so that they are not taken for probabilities
    model.train()(images(2)).sum().backward()
    return model.eval()


def made_in_inference_mode() -> nn.Module:
    """Weights that cannot be written outside inference mode, and that autograd refuses."""
    with torch.inference_mode():
        return Tiny()


class Answers(Tiny):
    """Answers with a dictionary."""

    def forward(self, x: Tensor) -> Any:
        return {"loss": None, "logits": super().forward(x)}


def adapted() -> nn.Module:
    """Behind an adapter, in training mode."""
    return rw.adapt(Answers().train(), output="logits")


def adapted_and_compiled() -> nn.Module:
    """Wrapped on both sides of the adapter."""
    inner = cast("nn.Module", torch.compile(Answers(), backend="eager"))
    return nn.DataParallel(rw.adapt(nn.DataParallel(inner), output="logits"))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": Tiny,
    "training mode": training,
    "partly frozen": frozen,
    "with gradients": half_trained,
    "user's hooks": hooked,
    "channels last": lambda: Tiny().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "float64": lambda: Tiny().double(),
    "bfloat16": lambda: Tiny().bfloat16(),
    "in place on its input": Careless,
    "random in evaluation": Dropping,
    "random of numpy and Python": Gambling,
    "with observers": Observing,
    "pruned and normalised": pruned,
    "made in inference mode": made_in_inference_mode,
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "data parallel": parallel,
    "adapted": adapted,
    "adapted and compiled": adapted_and_compiled,
}
