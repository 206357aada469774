"""Scores from models that return something other than logits of classes.  Imports torch only.

Networks of libraries return a dictionary, a tuple or an object that holds the scores among other
things, or probabilities, one column, or labels that do not exclude each other.  `adapt` says where the
scores are and what they mean; everything in the engine then gets them in one form, see `heads`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from rectify_widgets.engine.base.checks import check_choice, check_module, nearest
from rectify_widgets.engine.base.randomness import preserving_rng
from rectify_widgets.engine.model.heads import SCORES, TASKS, Head

Output: TypeAlias = str | int | Callable[[Any], Tensor]
"""Where the scores are in an answer: a key or attribute, a position, or a function of it."""


class Adapted(nn.Module):
    """A model whose answer is turned into scores, see `adapt`."""

    def __init__(
        self,
        module: nn.Module,
        output: Output | None,
        task: str | None = None,
        scores: str | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.output = output
        self.task = task
        self.scores = scores
        self.training = module.training

    def extra_repr(self) -> str:
        """What the module itself adds to its printed form."""
        given = {name: getattr(self, name) for name in ("output", "task", "scores")}
        return ", ".join(f"{name}={one!r}" for name, one in given.items() if one is not None)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The scores, with a task in the form that the engine works on.

        That is logits of ``N × classes``, for ``"binary"`` of ``N × 2``, and for ``"multilabel"`` of
        ``N × labels × 2``, absent and present.  Without a task it is what the model answers.

        Raises:
            TypeError: what lies at ``output`` is not a tensor.
            ValueError: nothing lies there, or its shape or numbers do not fit the task.
        """
        watch = _Squashing() if self.scores == "probabilities" else None
        with nullcontext() if watch is None else watch:
            answer = self.module(*args, **kwargs)
        scores: Any = self._find(answer)
        if not isinstance(scores, Tensor) and self.output is not None:
            raise TypeError(
                f"output: {self.output!r} of the model's answer is {_describe(scores)}, want a "
                "tensor of N × classes scores"
            )
        if self.task is None or not isinstance(scores, Tensor):
            return cast("Tensor", scores)  # `predict` says what is wrong with anything else
        if watch is not None and (logits := watch.before(scores)) is not None:
            return Head(self.task).read(logits)
        return Head(self.task, self.scores or "logits").read(scores)

    def _find(self, answer: object) -> object:
        if self.output is None:
            return answer
        if callable(self.output):
            return self.output(answer)
        parts = _parts(answer)
        if self.output in parts:
            return parts[self.output]
        if isinstance(answer, tuple | list) and isinstance(self.output, int):
            with suppress(IndexError):
                return answer[self.output]
        named = isinstance(self.output, str) and not isinstance(answer, Mapping | Tensor)
        if named and hasattr(answer, str(self.output)):  # a property is not among the parts
            return getattr(answer, str(self.output))
        close = nearest(self.output, map(str, parts)) if isinstance(self.output, str) else ""
        hint = "hand it over without adapt" if isinstance(answer, Tensor) else "name one of these"
        raise ValueError(
            f"output: got {self.output!r}{close}, but the model's answer is {_describe(answer)}; "
            f"{hint}, or give a function that takes the answer and returns the scores"
        )


class _Squashing(TorchFunctionMode):
    """Remembers what the last softmax or sigmoid was taken of: logits that need no logarithm.

    In float32 a sigmoid is 1 from logits of 17 on, and the gradient through it is 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[Tensor, Tensor, list[int]] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        out = func(*args, **given)
        if func in _SIGMOIDS or (func in _SOFTMAXES and _over_classes(out, args, given)):
            logits = args[0] if args else given["input"]
            self._last = out, logits, _versions(out, logits)
        return out

    def before(self, answer: Tensor) -> Tensor | None:
        """The logits of an answer, in its shape; None where it is no softmax or sigmoid, or unknown."""
        if self._last is None:
            return None
        out, logits, versions = self._last
        if not versions or versions != _versions(out, logits):  # changed in place since
            return None
        same = out.data_ptr() == answer.data_ptr() and out.numel() == answer.numel()
        whole = out.is_contiguous() and answer.is_contiguous() and logits.numel() == out.numel()
        return logits.reshape(answer.shape) if same and whole else None


def _versions(*tensors: Tensor) -> list[int]:
    """How often each was changed in place; empty in inference mode, which does not count."""
    if any(one.is_inference() for one in tensors):
        return []
    return [one._version for one in tensors]  # noqa: SLF001 - torch has no public name for it


def _over_classes(out: Tensor, args: Sequence[Any], given: Mapping[str, Any]) -> bool:
    """Whether a softmax runs over the second of two dimensions."""
    dim = args[1] if len(args) > 1 else given.get("dim")
    return out.ndim == 2 and dim in (None, 1, -1)


_SIGMOIDS = {torch.sigmoid, Tensor.sigmoid, functional.sigmoid, torch.special.expit}
_SOFTMAXES = {torch.softmax, Tensor.softmax, functional.softmax, torch.special.softmax}


def adapt(
    model: nn.Module,
    *,
    output: Output | None = None,
    task: str | None = None,
    scores: str | None = None,
) -> Adapted:
    """The model as one that answers with a tensor of scores whose meaning is known.

    It can be handed to everything in this package.  Layers go by the names that they have in the
    model itself, and edits fit both.  The adapted model shares its weights with the model; so does
    ``result.model.module``, the model itself within a rectified copy, with that copy.

    Args:
        model: any torch module, compiled or not.
        output: the scores in its answer: a str (key of a dictionary, attribute of an object), an
            int (position in a tuple or list), or a function from the answer to the scores.  None
            where the answer is the scores.
        task: ``"multiclass"``, ``N × C`` scores of classes that exclude each other; ``"binary"``, one
            number a sample (``N × 1`` or ``N``) for class 1 against class 0; ``"multilabel"``,
            ``N × L`` scores of labels that are present or not, whose truth is ``N × L`` zeros and ones.
            None guesses one of the first two, with a warning where it is not ``"multiclass"`` with logits.
        scores: ``"logits"`` or ``"probabilities"`` (what comes out of a softmax or sigmoid); None looks
            whether they lie in 0…1, and with several classes add up to one, and warns if so.

    Raises:
        TypeError: not a module, or another kind of output, task or scores.
        ValueError: the model is adapted already, another name of a task or of scores,
            or scores without a task.

    Example:
        >>> class Answering(torch.nn.Module):  # with a dictionary
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.network = model
        ...
        ...     def forward(self, inputs):
        ...         return {"logits": self.network(inputs)}
        >>> adapted = rw.adapt(Answering(), output="logits")
        >>> rw.localize(adapted, pairs, reference=reference).best
        'network.classifier'
        >>> one_number = torch.nn.Sequential(model, torch.nn.Linear(3, 1))
        >>> detector = rw.adapt(one_number, task="binary", scores="logits")
    """
    check_module("model", model)
    if task is not None:
        check_choice("task", task, TASKS)
    if scores is not None:
        check_choice("scores", scores, SCORES)
        if task is None:
            raise ValueError(f"scores: got {scores!r} without a task, want task=... with it")
    fine = isinstance(output, str | int) or callable(output)
    if isinstance(output, bool) or not (fine or (output is None and task)):
        raise TypeError(
            f"output: got {output!r}, want a str (key or attribute), an int (position), or a "
            "function that takes the model's answer and returns its scores"
        )
    if any(isinstance(part, Adapted) for part in model.modules()):
        raise ValueError("model: it is adapted already; adapt the model itself, its .module")
    return Adapted(model, output, task, scores)


def hint_to_adapt(model: nn.Module, own: nn.Module, inputs: Tensor) -> str:
    """How to adapt a model whose answer is no tensor; runs it once more to see what made the parts.

    ``own`` is the user's own module in it.
    """
    made: dict[int, int] = {}

    def note(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            # A view made later, as by a Flatten, is still the output of the layer before it.
            made.setdefault(output.data_ptr(), len(made))

    with ExitStack() as stack:
        stack.enter_context(preserving_rng(inputs.device))
        for part in own.modules():
            stack.callback(part.register_forward_hook(note).remove)
        answer = model(inputs.clone())
    return adapt_hint(answer, len(inputs), made)


def adapt_hint(answer: object, count: int, made: Mapping[int, int]) -> str:
    """Describe an answer of ``count`` samples that is not a tensor, and how to adapt the model.

    Where several parts could be the scores, those come first that the last layer made.

    Args:
        answer: what the model answers.
        count: samples it was given.
        made: address of a layer's output to the place of its call in the pass.
    """
    parts = {
        place: part
        for place, part in _parts(answer).items()
        if isinstance(part, Tensor) and part.ndim == 2 and len(part) == count and part.shape[1]
    }
    fit = sorted(parts, key=lambda p: (-made.get(parts[p].data_ptr(), -1), parts[p].shape[1] == 1))
    call = "output=f), where the function f takes this answer and returns the scores"
    if fit:
        place = "logits" if "logits" in fit else fit[0]
        call = f'output="{place}")' if isinstance(place, str) else f"output={place})"
    return (
        f"its output is {_describe(answer)}, want a tensor of N × classes scores; hand over "
        f"rw.adapt(model, {call}"
    )


def _parts(answer: object) -> dict[str | int, object]:
    """What an answer holds, by key, attribute or position."""
    if isinstance(answer, Mapping):
        return {place: part for place, part in answer.items() if isinstance(place, str | int)}
    if isinstance(answer, tuple) and hasattr(answer, "_asdict"):
        return dict(answer._asdict())
    if isinstance(answer, tuple | list):
        return dict(enumerate(answer))
    if isinstance(answer, Tensor):
        return {}
    fields = [*getattr(answer, "__dataclass_fields__", ()), *getattr(answer, "__dict__", ())]
    return {name: getattr(answer, name) for name in dict.fromkeys(fields) if name[:1] != "_"}


def _describe(answer: object) -> str:
    if isinstance(answer, Tensor):
        return f"a tensor of shape {tuple(answer.shape)}"
    parts, kind = _parts(answer), type(answer).__name__
    if all(isinstance(place, int) for place in parts):
        return f"{kind} of {len(parts)}" if isinstance(answer, tuple | list) else kind
    return f"{kind} with {', '.join(map(repr, parts))}"
