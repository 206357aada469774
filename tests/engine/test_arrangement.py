"""Models are run with channels last where that gives the same, and as they are where it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rectify_widgets as rw
from rectify_widgets.engine.model.running import arranged, eval_mode, predict
from tests.engine.models import NETWORKS, images, make
from tests.engine.test_editing import patched


class Seen(nn.Module):
    """A small network that notes how its images lie in memory, and flattens with ``view``."""

    def __init__(self, flatten: str = "flatten") -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 49, 4)
        self.flatten = flatten
        self.last: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.conv(x))
        self.last.append(y.is_contiguous(memory_format=torch.channels_last))
        if self.flatten == "view":
            y = y.view(len(y), -1)
        elif self.flatten == "assert":
            assert y.is_contiguous(), "want plain strides"
            y = y.flatten(1)
        elif self.flatten == "strides":  # reads memory in the order in which it lies
            y = y.as_strided((len(y), 4 * 49), (4 * 49, 1))
        else:
            y = y.flatten(1)
        scores: Tensor = self.head(y)
        return scores


def seen(flatten: str) -> Seen:
    model = make(lambda: Seen(flatten))
    assert isinstance(model, Seen)
    return model


def ran_last(model: Seen, call: Callable[[], object]) -> set[bool]:
    model.last.clear()
    call()
    return set(model.last)


def test_a_model_that_can_is_run_with_channels_last() -> None:
    model, x = seen("flatten"), images(6)
    with eval_mode(model) as module:
        rw.editable_layers(module, x)
        assert ran_last(model, lambda: predict(module, x)) == {True}
        assert not x.is_contiguous(memory_format=torch.channels_last)
        # A weight's gradient must not go through channels last, so with gradients one asks for it.
        with torch.enable_grad():
            assert ran_last(model, lambda: predict(module, x)) == {False}
            assert ran_last(model, lambda: predict(module, arranged(module, x))) == {True}
    assert model.conv.weight.is_contiguous()
    assert ran_last(model, lambda: model(x)) == {False}  # called by the user it is as it was
    with eval_mode(model) as module:  # nor does another look inherit it
        assert ran_last(model, lambda: predict(module, x)) == {False}


@pytest.mark.parametrize("flatten", ["view", "assert", "strides"])
def test_a_model_that_cannot_is_run_as_it_is(flatten: str) -> None:
    model, x = seen(flatten), images(6)
    twin = copy.deepcopy(model)
    twin.flatten = "flatten"
    with eval_mode(model) as module:
        rw.editable_layers(module, x)
        assert ran_last(model, lambda: predict(module, x)) == {False}
    pairs, reference = patched(), images(20)
    found = rw.localize(model, pairs, reference=reference)
    wanted = rw.localize(twin, pairs, reference=reference)
    for name, score in wanted.scores.items():
        assert found.scores[name] == pytest.approx(score, abs=1e-3)


def test_it_is_found_out_anew_while_a_look_goes_on() -> None:
    model, x = seen("flatten"), images(6)
    with eval_mode(model) as module:
        for flatten, last in (("flatten", True), ("view", False), ("flatten", True)):
            model.flatten = flatten
            rw.editable_layers(module, x)
            assert ran_last(model, lambda: predict(module, x)) == {last}


def test_it_is_found_out_anew_in_every_call() -> None:
    model, x = seen("flatten"), images(6)
    for flatten, last in (("flatten", True), ("view", False), ("flatten", True)):
        model.flatten = flatten
        with eval_mode(model) as module:
            rw.editable_layers(module, x)
            assert ran_last(model, lambda: predict(module, x)) == {last}


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: rw.adapt(m, output=lambda y: y)])
def test_wrappers_are_seen_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, x = seen("flatten"), images(6)
    with eval_mode(wrap(model)) as module:
        rw.editable_layers(module, x)
        assert ran_last(model, lambda: predict(module, x)) == {True}


@pytest.mark.parametrize("kind", ["double", "no convolution", "two dimensions"])
def test_others_stay_as_they_are(kind: str) -> None:
    model, x = seen("flatten"), images(6)
    if kind == "double":
        model, x = model.double(), x.double()
        with eval_mode(model) as module:
            rw.editable_layers(module, x)
            assert ran_last(model, lambda: predict(module, x)) == {False}
        return
    flat = make(lambda: nn.Sequential(nn.Flatten(), nn.Linear(243, 4)))
    x = x if kind == "no convolution" else x.flatten(1)
    with eval_mode(flat) as module:
        rw.editable_layers(module, x)
        assert arranged(module, x).stride() == x.stride()


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_found_is_the_same(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network in float32, arranged, and of the same one that may not be."""
    model, pairs, reference = make(network), patched(), images(24)
    pairs = rw.SamplePairs(pairs.corrupted.float(), pairs.clean.float(), pairs.labels)
    found = rw.localize(model, pairs, reference=reference, trials=0)
    moments = rw.KeyStatistics.collect(model, reference)
    monkeypatch.setattr("rectify_widgets.engine.model.catalog.arrange", lambda *_: None)
    wanted = rw.localize(model, pairs, reference=reference, trials=0)
    for name, one in rw.KeyStatistics.collect(model, reference).items():
        scale = float(one.total.abs().max())
        torch.testing.assert_close(moments[name].total, one.total, rtol=0.0, atol=1e-5 * scale)
    for name, score in wanted.scores.items():
        assert found.scores[name] == pytest.approx(score, abs=1e-2)


@pytest.mark.parametrize("call", ["collect", "localize", "rectify", "solve_edit"])
def test_every_long_call_gains(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs, reference = seen("flatten"), patched(), images(24)
    pairs = rw.SamplePairs(pairs.corrupted.float(), pairs.clean.float(), pairs.labels)
    calls: dict[str, Callable[[], object]] = {
        "collect": lambda: rw.KeyStatistics.collect(model, reference),
        "localize": lambda: rw.localize(model, pairs, reference=reference),
        "rectify": lambda: rw.rectify(model, pairs, reference=reference, max_rounds=1),
        "solve_edit": lambda: rw.solve_edit(model, pairs, reference=reference, layer="conv"),
    }
    noted: list[bool] = []
    real = model.conv.forward

    def conv(x: Tensor) -> Tensor:
        noted.append(len(x) > 2 and x.is_contiguous())
        return real(x)

    monkeypatch.setattr(model.conv, "forward", conv)
    calls[call]()
    assert len(noted) > 3
    assert not any(noted)
