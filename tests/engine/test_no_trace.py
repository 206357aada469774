"""Calls of the engine leave no trace, whether they succeed, are cancelled or fail at any point.

What counts as a trace is in ``traces.py``; the models that make it hard in ``trace_models.py``.
"""

from __future__ import annotations

import copy
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import rectify_widgets as rw
from rectify_widgets.engine.model.running import unwrap
from tests.engine.bad_models import Boom, Countdown, Failing, fails
from tests.engine.calls import CALLS, CLEAN, INPUTS, LONG, PAIRS, REFERENCE, comparable
from tests.engine.trace_models import MODELS
from tests.engine.traces import Tiny, changes, corrupted, images, record, untouched

# --- calls that succeed --------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", MODELS)
def test_success_leaves_no_trace(kind: str, name: str) -> None:
    model = MODELS[kind]()
    with untouched(model, *INPUTS):
        CALLS[name](model)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "double by default": lambda: default_type(torch.float64),
    "plain": nullcontext,
}


class default_type:  # noqa: N801 - used like torch.no_grad
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.before)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_modes_of_the_caller_survive_and_change_nothing(context: str, name: str) -> None:
    model = Tiny()
    expected = comparable(CALLS[name](model))
    with CONTEXTS[context](), untouched(model, *INPUTS):
        found = CALLS[name](model)
    assert comparable(found) == expected


def test_pairs_and_references_made_in_inference_mode() -> None:
    model = Tiny()
    with torch.inference_mode():
        clean = images(2, seed=2)
        pairs = rw.SamplePairs(corrupted(clean), clean)
        reference = images(8)
        with untouched(model, clean, reference):
            found = rw.localize(model, pairs, reference=reference)
    assert found.scores == LONG["localize"](model).scores


def test_inputs_that_want_gradients_keep_their_graph() -> None:
    source = torch.ones(1, requires_grad=True)
    clean, reference = CLEAN * source, REFERENCE.clone().requires_grad_()
    model = Tiny()
    with untouched(model, clean, reference, source):
        pairs = rw.SamplePairs(corrupted(clean), clean)
        rw.rectify(model, pairs, reference=reference, max_rounds=1, refine_steps=5)
    assert not pairs.clean.requires_grad
    clean.sum().backward()
    assert source.grad is not None


def test_a_graph_of_the_caller_can_still_go_backward() -> None:
    model = Tiny()
    loss = model(REFERENCE).square().mean()
    for call in CALLS.values():
        call(model)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_global_hooks_of_the_caller_stay() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        model = Tiny()
        with untouched(model, *INPUTS):
            LONG["localize"](model)
    finally:
        handle.remove()


class Augmented(Dataset[Any]):
    """Draws from torch, numpy and Python for every sample."""

    def __len__(self) -> int:
        return len(REFERENCE)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = random.random() + np.random.rand()  # noqa: NPY002 - the global state is the point
        return REFERENCE[index] + 1e-3 * noise * torch.rand(3, 8, 8), 0


def test_the_generator_of_a_loader_keeps_its_place() -> None:
    generator = torch.Generator().manual_seed(3)
    loader: Any = DataLoader(
        Augmented(), batch_size=4, shuffle=True, generator=generator
    )  # fmt: skip
    before = generator.get_state()
    rw.rectify(Tiny(), PAIRS, reference=loader, max_rounds=1, refine_steps=5)
    with pytest.raises(TypeError, match="progress"):
        rw.localize(Tiny(), PAIRS, reference=loader, progress=1)  # type: ignore[arg-type]
    with pytest.raises(Boom):
        rw.KeyStatistics.collect(Failing(2), loader)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("loader", [False, True])
def test_data_that_draws_random_numbers(loader: bool) -> None:
    data: Any = Augmented()
    if loader:
        data = DataLoader(data, batch_size=4, shuffle=True)
    model = Tiny()
    with untouched(model, *INPUTS):
        statistics = rw.KeyStatistics.collect(model, data)
        rw.localize(model, PAIRS, reference=data)
        rw.find_corrupted(model, PAIRS, data, statistics=statistics)
        rw.rectify(model, PAIRS, reference=data, max_rounds=1, refine_steps=5)


def test_frozen_weights_are_edited_and_stay_frozen() -> None:
    # Whether a weight wants gradients says how it is trained, not whether it may be corrected.
    model = MODELS["partly frozen"]()
    flags = {name: weight.requires_grad for name, weight in model.named_parameters()}
    assert not flags["head.weight"]
    edit = rw.solve_edit(model, PAIRS, layer="head", reference=REFERENCE)
    before = record(model)
    edit.apply(model)
    assert flags == {name: weight.requires_grad for name, weight in model.named_parameters()}
    changed = {line.split(":")[0] for line in changes(before, record(model))}
    assert changed == {"parameter head.weight"}
    edit.revert(model)
    left = changes(before, record(model))
    assert [line.split(":")[:2] for line in left] == [["parameter head.weight", " version"]]
    result = rw.rectify(
        model, PAIRS, reference=REFERENCE, strategy="static", layer="head", target_gap=0.0,
        max_degradation=0.5,
    )  # fmt: skip
    assert [edit.layer for edit in result.edits] == ["head"]
    assert flags == {name: w.requires_grad for name, w in result.model.named_parameters()}


@pytest.mark.parametrize("kind", MODELS)
def test_the_repaired_copy_is_like_the_model_but_for_the_edits(kind: str) -> None:
    model = MODELS[kind]()
    result = LONG["rectify"](model)
    same_but_for_edits(result, model)


def same_but_for_edits(result: rw.Rectification, model: nn.Module) -> None:
    """The copy shares nothing with the model, and applying the edits to the model gives it."""
    original, repaired = unwrap(model), unwrap(result.model)
    assert [step.layer for step in result.steps if step.accepted] == [e.layer for e in result.edits]
    flags = [(name, part.training) for name, part in original.named_modules()]
    assert flags == [(name, part.training) for name, part in repaired.named_modules()]
    places = {tensor.data_ptr() for tensor in (*original.parameters(), *original.buffers())}
    for tensor in (*repaired.parameters(), *repaired.buffers()):
        assert tensor.data_ptr() not in places
    held = [value for part in original.modules() for value in vars(part).values()]
    graphs = [one for one in held if isinstance(one, Tensor) and not one.is_leaf]
    again = copy.deepcopy(original, {id(one): one.detach().clone() for one in graphs})
    rw.Edits(result.edits).apply(again)
    for name, tensor in repaired.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        assert tensor.stride() == again.state_dict()[name].stride(), name
    for one, other in zip(repaired.parameters(), original.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad


# --- calls that are cancelled --------------------------------------------------------------------


class Asked:
    """A ``cancel`` that answers True from the ``at``-th time on."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.times = 0

    def __call__(self) -> bool:
        self.times += 1
        return self.at is not None and self.times >= self.at


@pytest.mark.parametrize("name", LONG)
def test_cancelled_at_every_stage(name: str) -> None:
    model = Tiny()
    asked = Asked()
    measured: list[int] = []
    LONG[name](
        model, cancel=asked,
        progress=lambda _, text: measured.append(asked.times) if "round 1" in text else None,
    )  # fmt: skip
    assert asked.times > 3
    first = (
        measured[0] - 1 if measured else 0
    )  # asks before the gap is known: there is nothing to return yet
    kept = set()
    for at in range(1, asked.times + 1, 1 + asked.times // 40):
        with untouched(model, *INPUTS, when=f"cancelled at ask {at} of {asked.times}"):
            if name.startswith("rectify") and at > first:
                result = LONG[name](model, cancel=Asked(at))
                assert result.stopped == "cancelled"
                same_but_for_edits(result, model)
                kept.add(len(result.edits))
            else:
                with pytest.raises(rw.Cancelled):
                    LONG[name](model, cancel=Asked(at))
    if name.startswith("rectify"):
        assert kept == set(range(max(kept) + 1))  # before the first edit and after each
        assert max(kept) >= 1


@pytest.mark.parametrize("name", LONG)
def test_cancelled_by_an_event(name: str) -> None:
    model, event = Tiny(), threading.Event()
    reports, heard = list[str](), list[str]()
    LONG[name](Tiny(), progress=lambda _, text: reports.append(text))

    def stop_halfway(_: float, text: str) -> None:
        heard.append(text)
        if 2 * len(heard) >= len(reports):
            event.set()

    with untouched(model, *INPUTS):
        try:
            result = LONG[name](model, cancel=event, progress=stop_halfway)
        except rw.Cancelled:
            result = None
    assert event.is_set()
    assert result is None or result.stopped == "cancelled"


@pytest.mark.parametrize("name", LONG)
def test_progress_never_goes_back_and_reaches_the_end(name: str) -> None:
    heard: list[float] = []
    LONG[name](Tiny(), progress=lambda fraction, _: heard.append(fraction))
    assert all(0.0 <= fraction <= 1.0 for fraction in heard)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


# --- calls that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["collect", "localize", "rectify", "rectify with refining", "editable_layers", "evaluate"],
)
def test_model_raises_in_any_forward_pass(name: str) -> None:
    passes = Failing()
    CALLS[name](passes)
    total = passes.countdown.asked
    assert total > (0 if name == "editable_layers" else 3)
    for at in range(1, total + 1, 1 + total // 30):
        model = Failing(at)
        with untouched(model, *INPUTS, when=f"failed in pass {at} of {total}"):
            with pytest.raises(Boom, match=rf"^call {at}(\n|$)"):
                CALLS[name](model)
            model.countdown.asked = total  # the test's own counter


@pytest.mark.parametrize("name", ["localize", "rectify", "rectify with refining"])
def test_progress_raises_every_time(name: str) -> None:
    model = Tiny()
    count = Countdown()
    LONG[name](model, progress=lambda *_: count.tick())
    for at in range(1, count.asked + 1, 3):
        hook = Countdown(at)
        when = f"progress failed at report {at}"
        with untouched(model, *INPUTS, when=when), pytest.raises(Boom):
            LONG[name](model, progress=lambda *_: hook.tick())  # noqa: B023 - called at once


@pytest.mark.parametrize("name", LONG)
def test_keyboard_interrupt_in_the_model(name: str) -> None:
    model = Failing()

    def interrupt(*_: object) -> None:
        if model.countdown.asked == 3:
            raise KeyboardInterrupt

    model.pool.register_forward_hook(interrupt)
    with untouched(model, *INPUTS), pytest.raises(KeyboardInterrupt):
        LONG[name](model)


@pytest.mark.parametrize("layer", ["first", "norm", "head"])
def test_a_hook_of_the_user_raises(layer: str) -> None:
    model = Tiny()
    hook = Countdown(at=4)
    model.get_submodule(layer).register_forward_hook(lambda *_: hook.tick())
    with untouched(model, *INPUTS), pytest.raises(Boom):
        LONG["localize"](model)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes from 3.11 on")
def test_an_error_of_the_model_tells_the_shape_it_was_given() -> None:
    model = Tiny()
    model.third.register_forward_hook(lambda *_: fails())
    with pytest.raises(Boom) as raised:
        rw.KeyStatistics.collect(model, REFERENCE)
    (note,) = raised.value.__notes__
    assert "shape (1, 3, 8, 8)" in note
    assert "[None]" in note


# --- the tests' own eyes -------------------------------------------------------------------------


def leaks() -> Iterator[tuple[str, Callable[[Tiny], object]]]:
    """Traces that must be seen, with what is said of them."""
    yield "attributes", lambda m: setattr(m, "scratch", 1)
    yield "training", lambda m: m.norm.train()
    yield "requires_grad", lambda m: m.head.requires_grad_(requires_grad=False)
    yield "_forward_hooks", lambda m: m.second.register_forward_hook(lambda *_: None)
    yield "_forward_pre_hooks", lambda m: m.register_forward_pre_hook(lambda *_: None)
    yield "_backward_hooks", lambda m: m.head.register_full_backward_hook(lambda *_: None)
    yield (
        "hooks of all modules",
        lambda _: GLOBAL.append(nn.modules.module.register_module_forward_hook(lambda *_: None)),
    )
    yield "weight: hooks", lambda m: m.head.weight.register_hook(lambda g: g)
    yield "grad", lambda m: m(REFERENCE).sum().backward()
    yield "values", lambda m: m.first.weight.data.view(-1)[0].add_(1e-7)
    yield "version", lambda m: m.third.weight.detach().mul_(1)
    yield "strides", lambda m: nn.Module.to(m, memory_format=torch.channels_last)  # type: ignore[call-overload]
    yield "place", lambda m: setattr(m.head.weight, "data", m.head.weight.data.clone())
    yield "identity", lambda m: setattr(m.head, "weight", nn.Parameter(m.head.weight.data))
    yield "num_batches_tracked", lambda m: m.train()(REFERENCE) is m.eval()
    yield "random numbers of torch", lambda _: torch.rand(1)
    yield "random numbers of numpy", lambda _: np.random.rand()  # noqa: NPY002 - the global state
    yield "random numbers of Python", lambda _: random.random()
    yield "mode: gradients", lambda _: torch._C._set_grad_enabled(False)
    yield "input 4", lambda _: REFERENCE.requires_grad_()


GLOBAL: list[Any] = []


@pytest.mark.parametrize(
    ("what", "leak"), leaks(), ids=lambda item: item if isinstance(item, str) else ""
)
def test_a_trace_is_seen(what: str, leak: Callable[[Tiny], object]) -> None:
    model = Tiny()
    before = record(model, *INPUTS)
    try:
        leak(model)
        assert any(what in line for line in changes(before, record(model, *INPUTS)))
    finally:
        torch.set_grad_enabled(True)
        REFERENCE.requires_grad_(False)
        while GLOBAL:
            GLOBAL.pop().remove()
    assert not changes(record(model, *INPUTS), record(model, *INPUTS))
