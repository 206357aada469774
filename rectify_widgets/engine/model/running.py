"""Running a model without leaving a trace.  Imports torch only.

`eval_mode`, `capturing` and `predict` clean up whether a block succeeds, fails or is cancelled.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from rectify_widgets.engine.base.checks import check_module
from rectify_widgets.engine.base.interrupts import at_safe_points, safe_point
from rectify_widgets.engine.base.progress import SILENT, Monitor
from rectify_widgets.engine.base.randomness import preserving_rng
from rectify_widgets.engine.model.fitting import misfit
from rectify_widgets.engine.model.heads import (
    ONE_COLUMN,
    PLAIN,
    describe_guess,
    guess_head,
    unmasked,
    within_one,
)
from rectify_widgets.engine.model.lending import Lent
from rectify_widgets.engine.model.opening import Opened, opens, rehearsing
from rectify_widgets.engine.model.outputs import Adapted, hint_to_adapt

CHUNK = 500_000
"""Input values in one forward pass on a CPU: three colour images of 224 × 224.  One pass bounds
how long a request to stop may take; accelerators take sixteen times as much."""
MOST = 256
"""Inputs in one forward pass at most."""
LOOKED_AT = 64
"""Inputs of each kind whose scores say what the head is."""

Result = TypeVar("Result")


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module, whose dotted names layers have.

    It lies behind ``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` and `adapt`.
    """
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def runnable(model: nn.Module) -> nn.Module:
    """The module to run: the user's own, behind its adapter where it has one."""
    while not isinstance(model, Adapted):
        if (inner := _inside(model)) is None:
            return model
        model = inner
    module = unwrap(model)
    return (
        model if module is model.module else Adapted(module, model.output, model.task, model.scores)
    )


def _inside(model: nn.Module) -> nn.Module | None:
    """What a wrapper wraps; None for any other module."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | Adapted):
        return model.module
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


@dataclass
class _Run:
    """How a model is run while it is in `eval_mode`."""

    lent: Lent
    """Its buffers, the same at the start of every pass."""
    channels_last: bool = False
    opened: bool | None = None
    """Whether gradients are kept where the model stops them; None until it is known."""
    argument: str = "inputs"
    """What the caller calls the inputs."""
    fits: bool = False
    """Whether the model has taken an input."""


_RUNS: WeakKeyDictionary[nn.Module, _Run] = WeakKeyDictionary()
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


@contextmanager
def only_here(model: nn.Module) -> Iterator[None]:
    """Keep other threads from using this model in the block, however it is wrapped.

    Flags and hooks belong to a module, not to a thread.
    """
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(unwrap(model), threading.RLock())
    with lock:
        yield


def copied(model: nn.Module) -> nn.Module:
    """A copy of the model, as the engine runs it, that shares nothing with it.

    Raises:
        ValueError: it has lazy layers without a shape, or cannot be copied.
    """
    module = runnable(model)
    _check_runnable(module)
    try:
        with only_here(model), torch.inference_mode(mode=False):  # otherwise it could not be edited
            return copy.deepcopy(module, _detached(module))
    except Exception as error:
        raise ValueError(
            f"model: it cannot be copied ({type(error).__name__}: {error}); detach tensors kept as "
            "attributes, or give modules that hold locks or files a __deepcopy__"
        ) from error


def _detached(module: nn.Module) -> dict[int, Any]:
    """Copies, without their graph, of tensors that hang on one: computed weights, kept activations."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for leaf in tree_leaves(list(vars(part).values())):
            if isinstance(leaf, Tensor) and not leaf.is_leaf:
                memo[id(leaf)] = leaf.detach().clone()
    return memo


def _check_runnable(module: nn.Module) -> None:
    """Refuse what cannot be run or observed."""
    own = unwrap(module)
    if isinstance(own, torch.jit.ScriptModule):
        raise ValueError(  # noqa: TRY004 - it is a module
            f"model: it is a TorchScript module ({type(own).__name__}), whose layers can neither "
            "be observed nor edited; hand over the module that it was made from"
        )
    _refuse_lazy(module)


def _refuse_lazy(module: nn.Module) -> None:
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise ValueError(
            "model: it has lazy layers without a shape; run it once on an input before this call"
        )


@contextmanager
def eval_mode(model: nn.Module, argument: str = "inputs") -> Iterator[nn.Module]:
    """Yield the model in evaluation mode, run eagerly and in its own precision; see `runnable`.

    On leaving, every module has its training flag and its buffers back.  Ctrl-C is held back until a
    safe point, see `rectify_widgets.engine.base.interrupts`.  Another thread that enters `eval_mode` with
    the same model waits; it must not run the model by other means, since a block may hold hooks or
    try edits.  Autocast and inference mode of the caller are switched off inside: statistics need
    full precision and the sweep needs gradients.

    ``argument`` is what the caller calls the inputs, for the error where the model cannot take them.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: its weights hold no data (lazy layers, the meta device), or it is TorchScript.
    """
    module = runnable(check_module("model", model))
    _check_runnable(module)
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        raise ValueError("model: its weights are on the meta device, want a model that holds data")
    own, parts = unwrap(module), list(module.modules())
    with ExitStack() as stack:
        stack.enter_context(at_safe_points())
        stack.enter_context(only_here(module))
        if own not in _RUNS:  # the outermost block
            run = _RUNS[own] = _Run(Lent(module), argument=argument)
            stack.callback(_RUNS.pop, own)
            stack.callback(run.lent.give_back)
            run.lent.renew()
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(model_device(module).type, enabled=False))
        if any(
            hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None)
            for part in parts
        ):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for part in parts:
            stack.callback(setattr, part, "training", part.training)
            part.training = False
        yield module


@contextmanager
def capturing(
    modules: Mapping[str, nn.Module], callback: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Call ``callback(name, input, output)`` after each module's forward, while the block runs."""
    with ExitStack() as stack:
        for name, module in modules.items():

            def hook(
                _: nn.Module, args: Any, kwargs: Any, output: object, name: str = name
            ) -> None:
                given = args[0] if args else kwargs.get("input")
                if rehearsing():
                    return
                if isinstance(given, Tensor) and isinstance(output, Tensor):
                    callback(name, given, output)

            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def arrange(model: nn.Module, inputs: Tensor, scores: Tensor) -> None:
    """Run the model with channels last until `eval_mode` ends, if that gives the same scores.

    On a CPU convolutions then take up to a third less time, but ``x.view(len(x), -1)`` fails.
    """
    if not (_rearranged(inputs) and any(isinstance(part, nn.Conv2d) for part in model.modules())):
        return
    _RUNS[unwrap(model)].channels_last = True
    try:
        rearranged = predict(model, inputs)
        scale = float(scores.abs().max())
        same = torch.allclose(rearranged, scores, rtol=0.0, atol=1e-3 * scale, equal_nan=True)
    except (AssertionError, RuntimeError, ValueError):  # other faults are reported elsewhere
        same = False
    if not same:
        disarrange(model)


def disarrange(model: nn.Module) -> None:
    """Undo `arrange`."""
    _RUNS[unwrap(model)].channels_last = False


def arranged(model: nn.Module, inputs: Tensor) -> Tensor:
    """A copy of the inputs in the memory format that the model is run with."""
    run = _RUNS.get(unwrap(model))
    last = _rearranged(inputs) and run is not None and run.channels_last
    return inputs.clone(memory_format=torch.channels_last if last else torch.preserve_format)


def _rearranged(inputs: Tensor) -> bool:
    """Whether such inputs may gain from channels last."""
    return inputs.ndim == 4 and inputs.device.type == "cpu" and inputs.dtype == torch.float32


def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Scores of ``inputs`` in the form of `rectify_widgets.engine.model.heads`.

    The random state is what it was before.  The model gets a copy, since its first layer may work in
    place.  What it raises is passed on, with a note (from Python 3.11 on) of what it was given.  One
    column is taken as logits; see `with_head`.

    Raises:
        TypeError: the model returns something that is not a tensor.
        ValueError: it cannot take such inputs, or the scores are not ``N × classes``, nor one number a sample.
    """
    scores = _answer(model, inputs)
    if scores.shape[0] == len(inputs) and scores.shape[1:] in ((), (1,)):
        return ONE_COLUMN.read(scores)
    several = scores.ndim == 2 and scores.shape[1] > 1
    several |= scores.ndim == 3 and scores.shape[1] > 0 and scores.shape[2] == 2
    if scores.shape[:1] != (len(inputs),) or not several:
        raise _misshapen(scores, len(inputs))
    return unmasked(scores)


def _misshapen(scores: Tensor, count: int) -> ValueError:
    return ValueError(
        f"model: its output has shape {tuple(scores.shape)} for {count} inputs, want N × classes, "
        "or N × 1 for a decision between two"
    )


def _answer(model: nn.Module, inputs: Tensor) -> Tensor:
    """What the model answers, a tensor of any shape; see `predict`."""
    safe_point()
    run = next((found for part in _within(model) if (found := _RUNS.get(part))), None)
    try:
        with preserving_rng(inputs.device):
            scores = _scores(model, inputs, run)
    except Exception as error:
        if run is not None and not run.fits:
            unfit = misfit(error, run.argument, unwrap(model), inputs)
            if unfit is not None:
                raise unfit from error
        if hasattr(error, "add_note"):
            error.add_note(
                f"the model raised this on inputs of shape {tuple(inputs.shape)}, {inputs.dtype}; "
                "the first dimension counts samples (add it to a single image with [None])"
            )
        raise
    finally:
        if run is not None:
            run.lent.renew()
    safe_point()
    if run is not None:
        run.fits = True
    if not isinstance(scores, Tensor):
        raise TypeError(f"model: {hint_to_adapt(model, unwrap(model), inputs)}")
    return scores


def _within(model: nn.Module) -> Iterator[nn.Module]:
    """The user's own module, also inside one that a call has put around it."""
    yield (own := unwrap(model))
    yield from own.children()


def _scores(model: nn.Module, inputs: Tensor, run: _Run | None) -> Any:
    """What the model answers, with gradients through all of it where they are wanted and possible."""
    if not torch.is_grad_enabled():
        return model(arranged(model, inputs))
    # With gradients the caller chooses the format: a weight's must not be channels_last, see `pad`.
    if run is not None and run.opened is None:
        with preserving_rng(inputs.device):
            run.opened = opens(model, inputs[:1])
        run.lent.renew()
    with Opened() if run is not None and run.opened else nullcontext():
        return model(inputs.clone())


def with_head(model: nn.Module, *inputs: Tensor, columns: bool = False) -> nn.Module:
    """The model, or an adapter around it where its head is not that of several classes with logits.

    A head that `rw.adapt` was not told is guessed from the model's own answers, with a warning that
    says what was guessed and how to say otherwise.

    Args:
        model: in evaluation mode.
        *inputs: batches of samples to look at, on any device.
        columns: whether to guess from the number of columns alone.

    Raises:
        ValueError: the answer is no ``N × classes``, nor one number a sample.
    """
    module, output, task, kind = model, None, None, None
    if isinstance(model, Adapted):
        module, output, task, kind = model.module, model.output, model.task, model.scores
        if kind is not None:
            return model
    raw = Adapted(module, output)
    device, dtype = model_device(model), model_dtype(model)

    def answers(some: Tensor) -> Iterator[Tensor]:
        def answer(rows: slice) -> Tensor:
            return _answer(raw, some[rows].to(device, dtype))

        yield from in_chunks(len(some), chunk_size(some, device), answer)

    first = next(answers(inputs[0][:1]))
    if first.ndim > 2:
        raise _misshapen(first, 1)
    if first.shape[:1] != (1,) or not first.numel():
        return model  # `predict` says what is wrong with it
    single = first.shape[1:] in ((), (1,))
    if not single and (columns or not within_one(first)):
        return model  # several classes and logits
    answer = torch.cat([part for some in inputs for part in answers(some[:LOOKED_AT])])
    head = guess_head(answer, task, kind)
    if sentence := describe_guess(answer, head, certain=task is not None):
        warnings.warn(sentence, UserWarning, stacklevel=3)
    if head == PLAIN:
        return model
    return Adapted(module, output, head.task, head.scores)


def predict_all(
    model: nn.Module,
    inputs: Tensor,
    batch_size: int | None = None,
    monitor: Monitor = SILENT,
) -> Tensor:
    """Scores of any number of inputs in float32 or better, ``batch_size`` or `chunk_size` at a time."""
    return torch.cat(list(batched(model, inputs, batch_size, monitor)))


def batched(
    model: nn.Module,
    inputs: Tensor,
    batch_size: int | None = None,
    monitor: Monitor = SILENT,
) -> Iterator[Tensor]:
    """The scores of `predict_all`, batch after batch."""
    device, dtype = model_device(model), model_dtype(model)

    def scores(rows: slice) -> Tensor:
        monitor.check()
        return predict(model, inputs[rows].to(device, dtype)).to(working_dtype(dtype))

    return in_chunks(len(inputs), batch_size or chunk_size(inputs, device), scores)


def in_chunks(count: int, size: int, work: Callable[[slice], Result]) -> Iterator[Result]:
    """What ``work`` returns for ``count`` rows, ``size`` at a time.

    Where a device has no memory left, ``work`` is called again for the first half of the rows, and no
    later chunk is larger.  So it must not have changed anything when it fails.
    """
    first = 0
    while first < count:
        rows = slice(first, min(first + size, count))
        try:
            result = work(rows)
        except torch.OutOfMemoryError as error:
            size = (rows.stop - first) // 2
            if size == 0:
                if hasattr(error, "add_note"):
                    error.add_note("this was a single input, so smaller chunks cannot help")
                raise
        else:
            first = rows.stop
            yield result
            continue
        torch.cuda.empty_cache()  # not while the error is handled, whose frames hold tensors


def chunk_size(inputs: Tensor, device: torch.device) -> int:
    """Number of inputs in one forward pass, small enough to stop promptly on request."""
    room = CHUNK if device.type == "cpu" else 16 * CHUNK
    return min(max(room // max(inputs[:1].numel(), 1), 1), MOST)


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer (the CPU where it has none)."""
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def model_dtype(model: nn.Module) -> torch.dtype:
    """The type of the model's first floating-point parameter (float32 where it has none)."""
    types = (tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())
    return next(types, torch.float32)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which the engine computes: float64 for float64 models, otherwise float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32
