"""One sweep for all layers against captum's `InternalInfluence`, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from captum.attr import InternalInfluence
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.base.progress import Cancelled, Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.localization import localize
from rectify_widgets.engine.model import gradients
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.gradients import margin, sweep
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.model.running import eval_mode
from tests.engine import oracles
from tests.engine.models import Plain, Residual, images, make

LABELS, RIVALS = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 0, 2, 3])

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "plain": (Plain, Plain),
    "plain, in place": (lambda: Plain(inplace=True), Plain),
    "residual, in place": (Residual, lambda: Residual(inplace=False)),
}
"""A network, and the same written without in-place operations for captum."""


def ends() -> tuple[Tensor, Tensor]:
    return images(5, seed=1), images(5, seed=2)


def run(
    model: nn.Module, steps: int, *, batch_size: int = 64, monitor: Monitor | None = None
) -> tuple[Mapping[str, EditableLayer], dict[str, Tensor]]:
    start, end = ends()
    dtype = next(model.parameters()).dtype
    layers = editable_layers(model, start).editable
    with eval_mode(model) as module, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "chunk_size", lambda *_: batch_size)
        found = sweep(
            module, layers, start.to(dtype), end.to(dtype), LABELS, RIVALS,
            steps=steps, monitor=monitor or Monitor(),
        )  # fmt: skip
    return layers, found


def influence(model: nn.Module, name: str, steps: int) -> Tensor:
    """captum's average of the margin's gradient in the output of one layer."""
    start, end = (x.to(next(model.parameters()).dtype) for x in ends())

    def difference(x: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
        scores: Tensor = model(x)
        chosen = scores.gather(1, torch.stack([labels, rivals], dim=1))
        return chosen[:, 0] - chosen[:, 1]

    found = InternalInfluence(difference, model.get_submodule(name)).attribute(
        end, baselines=start, additional_forward_args=(LABELS, RIVALS),
        n_steps=steps, method="riemann_middle",
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("steps", [2, 4, 7])
def test_gradients_are_those_of_captum(network: str, steps: int) -> None:
    build, twin = NETWORKS[network]
    model, reference = make(build).double(), make(twin).double()
    reference.load_state_dict(model.state_dict())
    layers, found = run(model, steps)
    assert list(found) == list(layers)
    for name, layer in layers.items():
        wanted = layer.positions(influence(reference, name, steps), samples=5)
        assert float(wanted.abs().max()) > 0, name
        # captum weighs its steps in float32.
        torch.testing.assert_close(found[name], wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "network", ["perceptron", "transformer", "windows", "padded", "mobile", "fused"]
)
def test_gradients_of_other_networks(network: str) -> None:
    """captum cannot follow some of them in place, so one step by autograd serves as the oracle."""
    model = make(network).double()
    layers, found = run(model, steps=1)
    start, end = (x.double() for x in ends())
    for name, layer in layers.items():
        seen: list[Tensor] = []

        def keep(_: nn.Module, __: object, output: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(output)
            return output.clone()  # what follows may change the copy in place

        handle = model.get_submodule(name).register_forward_hook(keep)
        scores = model((start + end) / 2)
        handle.remove()
        (gradient,) = torch.autograd.grad(margin(scores, LABELS, RIVALS).sum(), seen)
        wanted = layer.positions(gradient, samples=5)
        torch.testing.assert_close(found[name], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_make_no_difference(batch_size: int) -> None:
    model = make("residual")
    _, whole = run(model, 4)
    _, parts = run(model, 4, batch_size=batch_size)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def margin_gained(model: nn.Module, labels: Tensor, rivals: Tensor) -> Tensor:
    """What attributions of a layer that cuts every path add up to."""
    start, end = (x.to(next(model.parameters()).dtype) for x in ends())
    change = model(end) - model(start)
    rows = torch.arange(len(change))
    gained: Tensor = change[rows, labels] - change[rows, rivals]
    return gained


def completeness_error(model: nn.Module, steps: int) -> dict[str, float]:
    """``|Σ (v − ṽ) Ḡ − gap| / |gap|`` of every layer, from its own outputs."""
    layers, found = run(model, steps)
    gap = margin_gained(model, LABELS, RIVALS)
    start, end = (x.to(next(model.parameters()).dtype) for x in ends())
    errors = {}
    for name, layer in layers.items():
        change = oracles.layer_output(model, name, end) - oracles.layer_output(model, name, start)
        total = (layer.positions(change, 5) * found[name]).sum(dim=(1, 2, 3))
        errors[name] = float((total - gap).abs().mean() / gap.abs().mean())
    return errors


class Smooth(nn.Module):
    """No residual: every layer cuts every path."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 5, 3, stride=2)
        self.head = nn.Linear(5 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.second(functional.gelu(self.first(x))))
        scores: Tensor = self.head(x.flatten(1))
        return scores


def test_attributions_add_up_where_a_layer_cuts_every_path() -> None:
    """The first layer follows the straight path itself, so that its sum is the gap exactly; what
    comes after it bends the path, but not by much between near points."""
    model = make(Smooth).double()
    errors = completeness_error(model, steps=200)
    assert errors["first"] < 1e-5
    assert max(errors.values()) < 0.05
    assert completeness_error(model, steps=1)["first"] > 100 * errors["first"]
    # A convolution inside a residual branch does not see the whole difference.
    inside = completeness_error(make("residual").double(), steps=200)
    assert inside["stem"] < 0.01
    assert inside["block1.conv2"] > 0.1


def test_localization_reports_the_completeness_error() -> None:
    model = make("residual").double()
    start, end = (x.double() for x in ends())
    with torch.no_grad():
        labels = model(end).argmax(dim=1)
        scores = model(start)
    scores[torch.arange(5), labels] = -torch.inf
    pairs = SamplePairs(start, end, labels)
    with pytest.warns(UserWarning, match="reference: none given"):
        found = localize(model, pairs, steps=16)
    layers = editable_layers(model, start).editable
    with eval_mode(model) as module:
        seen = sweep(
            module, layers, start, end, labels, scores.argmax(dim=1), steps=16, monitor=Monitor()
        )
    gap = margin_gained(model, labels, scores.argmax(dim=1))
    for name, layer in layers.items():
        change = oracles.layer_output(model, name, end) - oracles.layer_output(model, name, start)
        total = (layer.positions(change, 5) * seen[name]).sum(dim=(1, 2, 3))
        wanted = float((total - gap).abs().mean() / gap.abs().mean())
        assert found.completeness[name] == pytest.approx(wanted, rel=1e-4)


class Frozen(Plain):
    """Runs its convolutions without gradients, as is usual when only the head is trained."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.relu(self.second(self.relu(self.first(x)))).mean(dim=(2, 3))
        scores: Tensor = self.head(self.relu(self.hidden(x)))
        return scores


@pytest.mark.parametrize("trained", [True, False])
def test_gradients_of_layers_that_run_without_them(trained: bool) -> None:
    model, whole = make(Frozen).requires_grad_(trained), make(Plain)
    layers, found = run(model, 2)
    assert list(layers) == list(found) == ["first", "second", "hidden", "head"]
    _, wanted = run(whole, 2)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name])


class Elsewhere(Plain):
    """Takes its features through numpy, which no gradient passes."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.relu(self.second(self.relu(self.first(x)))).mean(dim=(2, 3))
        scores: Tensor = self.head(self.relu(self.hidden(torch.from_numpy(x.numpy()))))
        return scores


def test_layers_that_the_gradient_does_not_reach_are_left_out() -> None:
    model, whole = make(Elsewhere), make(Plain)
    layers, found = run(model, 2)
    assert list(layers) == ["first", "second", "hidden", "head"]
    assert list(found) == ["hidden", "head"]
    _, wanted = run(whole, 2)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name])
    _, nothing = run(model.requires_grad_(requires_grad=False), 2)
    assert not nothing


def test_frozen_parameters_and_a_callers_no_grad_do_not_matter() -> None:
    model = make("plain")
    _, wanted = run(model, 2)
    model.requires_grad_(requires_grad=False)
    with torch.no_grad():
        _, found = run(model, 2)
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_and_cancel() -> None:
    reported: list[float] = []
    run(make("plain"), 4, batch_size=2, monitor=Monitor(lambda at, _: reported.append(at)))
    assert reported == sorted(reported)
    assert len(reported) == 4 + 4 + 2  # two inputs, two more, and one at two points at a time
    assert 0 <= reported[0] <= reported[-1] <= 1
    for stop in range(1, 10, 3):
        calls: list[int] = []

        def cancel(calls: list[int] = calls, stop: int = stop) -> bool:
            calls.append(1)
            return len(calls) >= stop

        model = make("plain")
        with pytest.raises(Cancelled):
            run(model, 4, batch_size=2, monitor=Monitor(cancel=cancel))
        assert len(calls) == stop
        assert not any(part._forward_hooks for part in model.modules())
