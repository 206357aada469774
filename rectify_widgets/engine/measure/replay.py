"""Trial edits of a layer share everything that runs before it: it is run once and cached.

Imports torch only.  One forward pass of one sample shows which module calls end before a layer begins; a replay returns
the cached output of those calls and runs everything behind, so that the scores are the same to the
bit.  Only outputs that something behind uses are cached: a block's output and its skip connection,
not what happens within.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from rectify_widgets.engine.base.progress import SILENT, Monitor
from rectify_widgets.engine.base.randomness import random_states
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.model.running import (
    batched,
    chunk_size,
    predict,
    working_dtype,
)

ROOM = 2**29
"""Bytes that a replay may cache of each kind of inputs; chunks of inputs beyond that are run whole."""
AGAIN = 0.1
"""Where all inputs do not fit, a layer's replay begins further ahead, at a block's input: it may run so
large a share of the model's modules again."""


class _Touched(Exception):  # noqa: N818 - a signal, not an error
    def __init__(self, call: int) -> None:
        super().__init__(call)
        self.call = call


class _Absent(Tensor):
    """Stands for an output that may not be needed; raises `_Touched` when it is used."""

    call: int

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        absent = next(one for one in tree_leaves((args, kwargs)) if isinstance(one, _Absent))
        raise _Touched(absent.__dict__["call"])

    @classmethod
    def of(cls, call: int) -> _Absent:
        absent = torch.empty(0).as_subclass(cls)
        absent.__dict__["call"] = call
        return absent


@dataclass
class _Call:
    """One call of a module in a forward pass."""

    module: nn.Module
    parent: int
    depth: int
    start: int
    stop: int = 0
    leaf: bool = True


@dataclass(frozen=True)
class _Plan:
    """How to run on from a layer."""

    answers: Mapping[nn.Module, tuple[int | None, ...]]
    """For each module, in the order of its calls in a replay: the call whose output
    is returned, or None where it runs."""
    needed: frozenset[int]
    """Calls whose outputs something behind the layer uses."""


class Replay:
    """Scores of fixed inputs under edits of one layer at a time, the only change of the model.

    A layer that cannot be replayed (a model that draws random numbers, say) is run whole.

    Args:
        model: in evaluation mode, with the weights that everything before an edit will have.
        inputs: by kind, each ``N × C × H × W`` on the model's device.
        layers: those that will be edited.
        room: bytes to keep of each kind at most.
        monitor: checked between chunks.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        layers: Iterable[EditableLayer],
        *,
        room: int = ROOM,
        monitor: Monitor,
    ) -> None:
        self._inputs = inputs
        self._chunks = {
            kind: some.split(chunk_size(some, some.device)) for kind, some in inputs.items()
        }
        sample, count = next(iter(inputs.values()))[:1], max(map(len, inputs.values()))
        modules = {layer.name: layer.module for layer in layers}
        calls = _trace(model, sample) if modules else []
        self._plans = _plans(model, modules, calls, sample, room / count) if calls else {}
        self._kept: dict[str, list[dict[int, Any]]] = {kind: [] for kind in inputs}
        wanted = frozenset[int]().union(*(plan.needed for plan in self._plans.values()))
        for kind, chunks in self._chunks.items() if wanted else ():
            left = room
            with suppress(torch.OutOfMemoryError):  # then what is cached so far has to do
                for chunk in chunks:
                    monitor.check()
                    kept = _answers(model, calls, wanted, chunk)[0]
                    left -= _size(kept)
                    if left < 0 or len(kept) < len(wanted):
                        break
                    self._kept[kind].append(kept)

    def batches(
        self, model: nn.Module, kind: str, edited: str, monitor: Monitor = SILENT
    ) -> Iterator[Tensor]:
        """Scores of the model as it is now, which differs in the edited layer alone."""
        plan, chunks = self._plans.get(edited), self._chunks[kind]
        kept = self._kept[kind] if plan is not None else []
        done = 0
        for chunk, answers in zip(chunks, kept, strict=False):
            assert plan is not None  # noqa: S101 - nothing is kept without one
            monitor.check()
            try:
                with _answering(plan, answers):
                    scores = predict(model, chunk)
            except torch.OutOfMemoryError:
                kept.clear()
                break
            done += len(chunk)
            yield scores.to(working_dtype(scores.dtype))
        if done < len(self._inputs[kind]):
            yield from batched(model, self._inputs[kind][done:], len(chunks[0]), monitor)


@contextmanager
def _instead(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Have modules run other functions while the block runs."""
    with ExitStack() as stack:
        for module, forward in forwards.items():
            stack.callback(_restore, module, module.__dict__.get("forward"))
            module.__dict__["forward"] = forward
        yield


def _restore(module: nn.Module, forward: object) -> None:
    if forward is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = forward


def _traced(
    module: nn.Module, before: Callable[[], Any], after: Callable[[Any, Any], None]
) -> Callable[..., Any]:
    """The module's forward with a callback before it and one with its output."""
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        noted = before()
        answer = forward(*args, **kwargs)
        after(noted, answer)
        return answer

    return run


def _trace(model: nn.Module, sample: Tensor) -> list[_Call]:
    """All calls of one forward pass, in the order in which they begin; none if it draws random numbers."""
    calls: list[_Call] = []
    states: list[tuple[Any, ...]] = []
    under_way: list[int] = []
    clock = iter(range(10**9))

    def enter(module: nn.Module) -> _Call:
        if not calls:
            states.append(random_states(sample.device))
        if under_way:
            calls[under_way[-1]].leaf = False
        parent, depth = under_way[-1] if under_way else -1, len(under_way)
        call = _Call(module, parent, depth, next(clock))
        under_way.append(len(calls))
        calls.append(call)
        return call

    def leave(call: _Call, _: Any) -> None:
        call.stop = next(clock)
        under_way.pop()
        if not under_way:
            states.append(random_states(sample.device))

    forwards = {
        module: _traced(module, partial(enter, module), leave) for module in model.modules()
    }
    with _instead(forwards):
        predict(model, sample)
    return calls if states[0] == states[-1] else []


def _answers(
    model: nn.Module, calls: list[_Call], wanted: Collection[int], inputs: Tensor
) -> tuple[dict[int, Any], Tensor]:
    """Outputs of the wanted calls for these inputs, before anything changes them in place; and scores."""
    kept: dict[int, Any] = {}
    modules = {calls[number].module for number in wanted}
    turns = {
        module: iter([n for n, call in enumerate(calls) if call.module is module])
        for module in modules
    }

    def keep(number: int, answer: Any) -> None:
        if number in wanted:
            kept[number] = _copied(answer)

    forwards = {
        module: _traced(module, partial(next, turn, -1), keep) for module, turn in turns.items()
    }
    with _instead(forwards):
        return kept, predict(model, inputs)


def _size(answers: Any) -> int:
    """Bytes of outputs."""
    return sum(leaf.nbytes for leaf in tree_leaves(answers) if isinstance(leaf, Tensor))


def _plans(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    calls: list[_Call],
    sample: Tensor,
    room: float,
) -> dict[str, _Plan]:
    """How to run on from each layer, with outputs of so many bytes a sample if possible."""
    everything, whole = _answers(model, calls, range(1, len(calls)), sample)

    def planned(most: float) -> dict[str, _Plan]:
        found = {}
        for name, module in modules.items():
            plan = _plan(model, module, calls, sample, everything, whole, most)
            if plan is not None:
                found[name] = plan
        return found

    plans = planned(0.0)
    needed = frozenset[int]().union(*(plan.needed for plan in plans.values()))
    return plans if _size([everything[number] for number in needed]) <= room else planned(AGAIN)


def _plan(
    model: nn.Module,
    layer: nn.Module,
    calls: list[_Call],
    sample: Tensor,
    everything: Mapping[int, Any],
    whole: Tensor,
    again: float,
) -> _Plan | None:
    """How to run on from the layer; None where that does not reproduce the whole model.

    Args:
        model, layer: the layer is one of its modules.
        calls: of a forward pass.
        sample: that it was traced with.
        everything, whole: outputs of all calls but the first, and scores, for the sample.
        again: share of the modules that may run although they lie before the layer.
    """
    start = next((call.start for call in calls if call.module is layer), 0)
    for depth in range(1, 1 + max(call.depth for call in calls)):
        over = [call.stop < start and call.depth <= depth for call in calls]
        answered = {
            number
            for number, call in enumerate(calls)
            if over[number] and call.parent >= 0 and not over[call.parent]
        }
        within = [False] * len(calls)  # inside a call whose output is returned
        for number, call in enumerate(calls):
            within[number] = call.parent >= 0 and (call.parent in answered or within[call.parent])
        run = [
            number in answered or within[number] or call.stop >= start
            for number, call in enumerate(calls)
            if call.leaf
        ]
        if run.count(False) <= again * len(run):
            break
    turns: dict[nn.Module, list[int | None]] = {}
    for number, call in enumerate(calls):
        if not within[number]:
            turns.setdefault(call.module, []).append(number if number in answered else None)
    answers = {
        module: tuple(turn)
        for module, turn in turns.items()
        if any(number is not None for number in turn)
    }
    if not answers or not answered <= everything.keys():
        return None
    # Which part of an output that is not a tensor is used cannot be traced.
    needed = {number for number in answered if not isinstance(everything[number], Tensor)}
    while True:
        plan = _Plan(answers, frozenset(needed))
        try:
            with _answering(plan, everything):
                scores = predict(model, sample)
        except _Touched as touched:
            needed.add(touched.call)
        except (AttributeError, RuntimeError, TypeError):
            return None  # scripted code, say, does not accept stand-ins
        else:
            return plan if torch.equal(scores, whole) else None


@contextmanager
def _answering(plan: _Plan, kept: Mapping[int, Any]) -> Iterator[None]:
    """Return the cached outputs for the plan's calls while the block runs."""

    def answering(module: nn.Module, turns: Iterator[int | None]) -> Callable[..., Any]:
        forward = module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            number = next(turns, None)
            if number is None:
                return forward(*args, **kwargs)
            return _copied(kept[number]) if number in plan.needed else _Absent.of(number)

        return run

    forwards = {module: answering(module, iter(turns)) for module, turns in plan.answers.items()}
    with _instead(forwards):
        yield


def _copied(answer: Any) -> Any:
    """A copy that may be changed in place."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, answer)
