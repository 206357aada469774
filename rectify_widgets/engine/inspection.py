"""Looking at a model without leaving a trace.  Imports torch only.

`inspecting` puts a model into evaluation mode and takes every flag back afterwards; `capturing`
holds forward hooks for as long as a block runs; `predict` calls the model and checks what it
answers.  All three clean up whether the block succeeds, fails or is cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from rectify_widgets.engine.checks import check_module


def unwrap(model: nn.Module) -> nn.Module:
    """The module behind ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel``."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or bool(getattr(module, "_compiled_call_impl", None))


@contextmanager
def inspecting(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the unwrapped model in evaluation mode, run eagerly and in its own precision.

    On leaving, every module has the training flag that it came with.  Autocast and inference mode
    of the caller do not reach inside, since statistics want full precision and the sweep wants
    gradients.
    """
    module = unwrap(check_module("model", model))
    flags = [(part, part.training) for part in module.modules()]
    device = model_device(module)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if any(_is_compiled(part) for part, _ in flags):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for part, _ in flags:
                part.training = False
            yield module
        finally:
            for part, training in flags:
                part.training = training


@contextmanager
def capturing(
    modules: Mapping[str, nn.Module], callback: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Call ``callback(name, input, output)`` after each module's forward, while the block runs."""
    with ExitStack() as stack:
        for name, module in modules.items():

            def hook(
                _: nn.Module, args: tuple[object, ...], output: object, name: str = name
            ) -> None:
                if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                    callback(name, args[0], output)

            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def preserving_rng(device: torch.device | None = None) -> Iterator[None]:
    """Give torch's random state back as it was; written only where the block has changed it."""
    cpu = torch.get_rng_state()
    cuda = (
        torch.cuda.get_rng_state(device) if device is not None and device.type == "cuda" else None
    )
    try:
        yield
    finally:
        if not torch.equal(cpu, torch.get_rng_state()):
            torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)  # type: ignore[arg-type]


def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Scores ``N × classes`` of ``inputs``; the random state is what it was before.

    Raises:
        TypeError: the model answers with something that is not a tensor.
        ValueError: the scores are not ``N × classes`` with two classes or more.
    """
    with preserving_rng(inputs.device):
        scores = model(inputs)
    if not isinstance(scores, Tensor):
        raise TypeError(
            f"model: its output is {type(scores).__name__}, want a tensor of N × classes scores; "
            "wrap the model in a module that returns that tensor"
        )
    if scores.ndim != 2 or scores.shape[0] != inputs.shape[0] or scores.shape[1] < 2:
        raise ValueError(
            f"model: its output has shape {tuple(scores.shape)} for {inputs.shape[0]} inputs, "
            "want N × classes with at least two classes"
        )
    return scores


def predict_all(model: nn.Module, inputs: Tensor, batch_size: int = 256) -> Tensor:
    """Scores of any number of inputs, ``batch_size`` at a time, in float32 or better."""
    device, dtype = model_device(model), model_dtype(model)
    chunks = [
        predict(model, chunk.to(device=device, dtype=dtype)).to(working_dtype(dtype))
        for chunk in inputs.split(batch_size)
    ]
    return torch.cat(chunks)


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer (the CPU where it has none)."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def model_dtype(model: nn.Module) -> torch.dtype:
    """The type of the model's first floating-point parameter (float32 where it has none)."""
    for tensor in model.parameters():
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which the engine calculates: float64 for float64 models, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32
