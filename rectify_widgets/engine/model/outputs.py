"""Scores from models that return something other than a tensor.  Imports torch only.

Networks of libraries return a dictionary, a tuple or an object that holds the scores among other
things.  `adapt` says where they are; everything in the engine then gets plain scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_module, nearest

Output: TypeAlias = str | int | Callable[[Any], Tensor]
"""Where the scores are in an answer: a key or attribute, a position, or a function of it."""


class Adapted(nn.Module):
    """A model whose answer is turned into scores, see `adapt`."""

    def __init__(self, module: nn.Module, output: Output) -> None:
        super().__init__()
        self.module = module
        self.output = output
        self.training = module.training

    def extra_repr(self) -> str:
        """What the module itself adds to its printed form."""
        return f"output={self.output!r}"

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """``N × classes`` scores.

        Raises:
            TypeError: what lies there is not a tensor.
            ValueError: nothing lies there.
        """
        scores = self._find(self.module(*args, **kwargs))
        if not isinstance(scores, Tensor):
            raise TypeError(
                f"output: {self.output!r} of the model's answer is {_describe(scores)}, want a "
                "tensor of N × classes scores"
            )
        return scores

    def _find(self, answer: object) -> object:
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


def adapt(model: nn.Module, *, output: Output) -> Adapted:
    """The model as one that answers with a tensor of scores.

    It can be handed to everything in this package.  Layers go by the names that they have in the
    model itself, and edits fit both.  The adapted model shares its weights with the model; so does
    ``result.model.module``, the model itself within a rectified copy, with that copy.

    Args:
        model: any torch module, compiled or not.
        output: the scores in its answer: a str (key of a dictionary, attribute of an object), an
            int (position in a tuple or list), or a function from the answer to the scores.

    Raises:
        TypeError: not a module, or another kind of output.
        ValueError: the model is adapted already.

    Example:
        >>> model = rw.adapt(ViTForImageClassification(config), output="logits")
        >>> result = rw.rectify(model, pairs, reference=reference)
    """
    check_module("model", model)
    if isinstance(output, bool) or not (isinstance(output, str | int) or callable(output)):
        raise TypeError(
            f"output: got {output!r}, want a str (key or attribute), an int (position), or a "
            "function that takes the model's answer and returns its scores"
        )
    if any(isinstance(part, Adapted) for part in model.modules()):
        raise ValueError("model: it is adapted already; adapt the model itself, its .module")
    return Adapted(model, output)


def adapt_hint(answer: object, count: int) -> str:
    """Describe an answer of ``count`` samples that is not a tensor, and how to adapt the model."""
    fit = [
        place
        for place, part in _parts(answer).items()
        if isinstance(part, Tensor) and part.ndim == 2 and len(part) == count and part.shape[1] > 1
    ]
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
