"""Every public call that takes a model, and what must hold of its answer, computed by other means.

Imports torch, numpy and the package.  `CALLS` are in the order in which they are made: later ones use
answers of earlier ones.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import rectify_widgets as rw
from rectify_widgets.engine.model.running import unwrap
from tests.kinds.scene import CLASSES, Scene, marked

METHODS = ("edit-attribution", "projection", "trial")
SOME = 8
"""References of calls that need no more."""


@dataclass(frozen=True)
class Call:
    """One public call."""

    name: str
    make: Callable[[Scene], Any]
    check: Callable[[Scene, Any], None]
    writes: bool = False
    """Whether it writes to the model and takes it back, as applying an edit does."""

    def __str__(self) -> str:
        return self.name


CALLS: list[Call] = []


def call(
    name: str, make: Callable[[Scene], Any], **options: Any
) -> Callable[[Callable[[Scene, Any], None]], Callable[[Scene, Any], None]]:
    """Add a call; it decorates what checks its answer."""

    def add(check: Callable[[Scene, Any], None]) -> Callable[[Scene, Any], None]:
        CALLS.append(Call(name, make, check, **options))
        return check

    return add


def near(found: Tensor, wanted: Tensor, scene: Scene, *, what: str) -> None:
    """Whether two tensors agree as closely as the kind's numbers allow."""
    found, wanted = found.detach().double(), wanted.detach().double()
    assert found.shape == wanted.shape, f"{what}: {tuple(found.shape)}, not {tuple(wanted.shape)}"
    off = float((found - wanted).abs().max()) / (float(wanted.abs().max()) + 1e-9)
    assert off <= scene.kind.exact, f"{what}: off by {off:.2g} of the largest"


def matrices(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers of a model."""
    parts = unwrap(model).named_modules()
    return {name: part for name, part in parts if isinstance(part, nn.Conv2d | nn.Linear)}


# --- layers --------------------------------------------------------------------------------------


@call("editable_layers", lambda s: rw.editable_layers(s.model, s.reference))
def _(scene: Scene, found: rw.LayerCatalog) -> None:
    assert len(found) + len(found.refused) > 0
    missing = set(matrices(scene.model)) - set(found.editable) - set(found.refused)
    assert not missing, f"neither editable nor refused: {missing}"
    assert all(len(why) > 10 for why in found.refused.values())
    scene.results["layers"] = f"{len(found)} of {len(matrices(scene.model))}"


@call(
    "KeyStatistics.collect",
    lambda s: rw.KeyStatistics.collect(s.model, s.reference[:SOME], positions=5000),
)
def _(scene: Scene, found: rw.KeyStatistics) -> None:
    parts = dict(unwrap(scene.plain).named_modules())
    theirs = {name: scene.kind.twin_layers(name) for name in found}
    seen = layer_inputs(scene, list(theirs.values()), scene.reference[:SOME])
    for name, part in found.items():
        wanted = moment(parts[theirs[name]], seen[theirs[name]])
        near(part.moment, wanted, scene, what=f"second moment of {name}")


def moment(layer: nn.Module, inputs: Tensor) -> Tensor:
    """``E[k kᵀ]`` with unfolded patches, ``G × K × K``."""
    if not isinstance(layer, nn.Conv2d):
        rows = inputs.reshape(-1, inputs.shape[-1])
        return (rows.T @ rows / len(rows))[None]
    amount, mode = layer._reversed_padding_repeated_twice, layer.padding_mode
    padded = functional.pad(inputs, amount, "constant" if mode == "zeros" else mode)
    patches = functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    groups = patches.unflatten(1, (layer.groups, -1)).permute(1, 2, 0, 3).flatten(2)
    whole: Tensor = groups @ groups.mT / groups.shape[2]
    return whole


@call(
    "estimate_memory", lambda s: rw.estimate_memory(s.model, s.reference.shape[1:], references=32)
)
def _(_: Scene, found: rw.MemoryEstimate) -> None:
    assert found.peak > 0


# --- ranking and edits ---------------------------------------------------------------------------


def localize(method: str) -> None:
    """Add the call with one ranking method."""

    @call(
        f"localize, {method}",
        lambda s: rw.localize(
            s.model, s.pairs, reference=s.reference[:SOME], method=method, trials=0, steps=4
        ),
    )
    def _(scene: Scene, found: rw.Localization) -> None:
        numbers = torch.tensor(list(found.scores.values()))
        assert bool(torch.isfinite(numbers).all())
        assert float(numbers.abs().max()) > 0, "no layer has a score"
        if scene.kind.twin is not None:
            wanted = rw.localize(
                scene.plain, scene.pairs, reference=scene.reference[:SOME], method=method,
                trials=0, steps=4, layers=[scene.kind.twin_layers(name) for name in found.scores],
            )  # fmt: skip
            theirs = torch.tensor([wanted.scores[scene.kind.twin_layers(n)] for n in found.scores])
            near(numbers, theirs, scene, what="scores")


for each in METHODS:
    localize(each)


@call("solve_edit", lambda s: rw.solve_edit(s.model, s.pairs, reference=s.reference[:SOME]))
def _(scene: Scene, edit: rw.RankOneEdit) -> None:
    """No other left factor maps the corrupted keys closer to the clean values."""
    name = scene.kind.twin_layers(edit.layer)
    layer = dict(unwrap(scene.plain).named_modules())[name]
    both = scene.pairs.corrupted, scene.pairs.clean
    inputs = [layer_inputs(scene, [name], one)[name] for one in both]
    weight = layer.weight.detach().double()
    rows = edit.right.double().reshape(-1, edit.right.shape[-1])
    left = edit.left.double().reshape(len(rows), -1).requires_grad_()

    def missing(left: Tensor) -> Tensor:
        delta = torch.einsum("go,gk->gok", left, rows).reshape(weight.shape)
        wanted, got = run(layer, inputs[1], weight), run(layer, inputs[0], weight + delta)
        return (wanted - got).square().sum()

    with torch.enable_grad():
        (slope,) = torch.autograd.grad(missing(left), left)
        (first,) = torch.autograd.grad(missing(zero := (0 * left).detach().requires_grad_()), zero)
    assert float(slope.abs().max()) <= 20 * scene.kind.exact * float(first.abs().max())
    assert float(missing(left)) < float(missing(0 * left))


def layer_inputs(scene: Scene, layers: list[str], inputs: Tensor) -> dict[str, Tensor]:
    """What layers get when the plain model runs, in float64."""
    seen: dict[str, Tensor] = {}
    parts = dict(unwrap(scene.plain).named_modules())

    def note(name: str, args: Any, kwargs: Any) -> None:
        seen[name] = (args[0] if args else kwargs["input"]).detach().double().clone()

    handles = [
        parts[name].register_forward_pre_hook(
            lambda _, args, kwargs, name=name: note(name, args, kwargs), with_kwargs=True
        )
        for name in layers
    ]
    scene.by_hand(inputs)
    for handle in handles:
        handle.remove()
    return seen


def run(layer: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    """A layer with another weight, in float64, as it computes by itself."""
    twin = copy.deepcopy(layer).double()
    for hooks in (twin._forward_hooks, twin._forward_pre_hooks, twin._backward_hooks):
        hooks.clear()
    return torch.func.functional_call(twin, {"weight": weight}, (inputs,))  # type: ignore[no-any-return]


def repaired(scene: Scene, found: rw.Rectification, *, best: str | None = None) -> None:
    """The edits make the answered model out of the one that was given, and the gap is what fell."""
    assert found.gap_after <= found.gap_before
    twin = copy.deepcopy(unwrap(scene.plain))
    with torch.no_grad():
        for edit in found.edits:
            part = dict(twin.named_modules())[scene.kind.twin_layers(edit.layer)]
            part.weight.add_(edit.delta.to(part.weight))
        wanted = twin if scene.kind.twin is not None else None
    if wanted is None:
        mine = dict(unwrap(found.model).named_parameters())
        theirs = dict(twin.named_parameters())
        assert mine.keys() == theirs.keys()
        for name, parameter in mine.items():
            near(parameter, theirs[name], scene, what=f"weight {name}")
        return
    scores = scene_scores(found.model, scene)
    with torch.no_grad():
        near(scores, wanted(scene.reference), scene, what="scores of the repaired model")


def scene_scores(model: nn.Module, scene: Scene) -> Tensor:
    """Scores of a model that a call has answered, in evaluation mode."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        answer = copy.deepcopy(model).eval()(scene.reference.to(scene.dtype).clone())
    assert isinstance(answer, Tensor)
    return answer.float()


OPTIONS: dict[str, Any] = {"max_rounds": 1, "target_gap": 0.0, "max_degradation": 0.9}


@call(
    "rectify",
    lambda s: rw.rectify(s.model, s.pairs, reference=s.reference, refine_steps=0, **OPTIONS),
)
def _(scene: Scene, found: rw.Rectification) -> None:
    assert found.steps
    scene.results["edits"] = found.edits
    scene.results["repaired"] = found.model
    repaired(scene, found)


@call(
    "rectify, refining",
    lambda s: rw.rectify(
        s.model, s.pairs, reference=torch.cat([s.reference, 0.9 * s.reference]), refine_steps=3,
        directions=("key",), ridges=(1.0,), **OPTIONS,
    ),
)  # fmt: skip
def _(scene: Scene, found: rw.Rectification) -> None:
    repaired(scene, found)


@call(
    "rectify, static",
    lambda s: rw.rectify(
        s.model, s.pairs, reference=s.reference[:SOME], strategy="static", **OPTIONS
    ),
)
def _(scene: Scene, found: rw.Rectification) -> None:
    repaired(scene, found)


def save_and_apply(scene: Scene) -> tuple[rw.Edits, list[bool]]:
    """Save the edits, load them, put them into the model and take them back."""
    edit = rw.localize(scene.model, scene.pairs, reference=scene.reference[:SOME]).edit()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edits.safetensors"
        rw.save_edits([edit], path)
        loaded = rw.load_edits(path)
    loaded.apply(scene.model)
    applied = [one.is_applied(scene.model) for one in loaded]
    loaded.revert(scene.model)
    return loaded, applied


@call("save_edits, load_edits, apply, revert", save_and_apply, writes=True)
def _(_: Scene, found: tuple[rw.Edits, list[bool]]) -> None:
    assert found[1] == [True]


# --- references ----------------------------------------------------------------------------------


@call(
    "find_corrupted",
    lambda s: rw.find_corrupted(
        s.model, s.pairs, torch.cat([s.pairs.clean, s.pairs.corrupted]), reference=s.reference
    ),
)
def _(_: Scene, found: rw.CorruptedInputs) -> None:
    assert float(found.scores[2:].mean()) > float(found.scores[:2].mean())


@call(
    "find_places",
    lambda s: rw.find_places(s.model, s.pairs, reference=s.reference[:SOME], samples=8),
)
def _(scene: Scene, found: rw.Places) -> None:
    assert 0 <= float(found.shares.min()) <= float(found.shares.max()) <= 1
    assert found.shares.numel() > 1


@call(
    "estimate_corruption", lambda s: rw.estimate_corruption(s.model, s.pairs, reference=s.reference)
)
def _(scene: Scene, found: rw.Transfer) -> None:
    if found.corruption is not None:
        moved = (found.corruption(scene.reference) != scene.reference).any(dim=(0, 1))
        side = 3 * scene.kind.size // 8
        assert bool(moved[:side, :side].any())


# --- measuring and maps --------------------------------------------------------------------------


def test_set(scene: Scene) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The references with labels of their own, plain and marked."""
    return (scene.reference, scene.labels), (marked(scene.reference), scene.labels)


@call("evaluate", lambda s: rw.evaluate(s.model, *test_set(s), 0))
def _(scene: Scene, found: rw.Report) -> None:
    scores = scene.by_hand(scene.reference)
    if scene.kind.hot:
        return
    if scores.shape[1] == 1:
        scores = torch.cat([0 * scores.reshape(-1, 1), scores.reshape(-1, 1)], dim=1)
    right = scores.argmax(dim=1) == scene.labels
    assert abs(found.overall_accuracy - float(right.float().mean())) < 1e-6


@call(
    "attribute, saliency",
    lambda s: rw.attribute(s.model, s.reference[:2], method="saliency", target=1),
)
def _(scene: Scene, found: Tensor) -> None:
    near(found.abs(), slopes(scene).abs(), scene, what="gradient")


def explained(scores: Tensor) -> Tensor:
    """The score of class 1, which is the only one of a single column."""
    return scores[:, min(1, scores.shape[1] - 1)]


def slopes(scene: Scene) -> Tensor:
    """Gradient of the score of class 1, by hand."""
    inputs = scene.reference[:2].to(scene.dtype).clone().requires_grad_()
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        total = explained(scene.fresh()(inputs.clone())).sum()
    return torch.autograd.grad(total, inputs)[0].float()


@call(
    "attribute, occlusion",
    lambda s: rw.attribute(s.model, s.reference[:1], method="occlusion", window=s.kind.size // 2,
                           stride=s.kind.size // 2, target=1),
)  # fmt: skip
def _(scene: Scene, found: Tensor) -> None:
    half = scene.kind.size // 2
    inputs = scene.reference[:1]
    whole = explained(scene.by_hand(inputs))[0]
    covered = inputs.clone()
    covered[:, :, :half, :half] = 0.0
    change = float(whole - explained(scene.by_hand(covered))[0])
    size = float(found.abs().max()) + abs(float(whole))
    wrong = (found[0, :, :half, :half] - change).abs().max()
    assert float(wrong) <= 10 * scene.kind.exact * size, (
        f"off by {float(wrong):.2g} of {change:.2g}"
    )


@call(
    "attribute, Grad-CAM",
    lambda s: rw.attribute(s.model, s.reference[:2], method="grad-cam", target=1),
)
def _(scene: Scene, found: Tensor) -> None:
    assert found.shape == (2, 1, *scene.reference.shape[2:])
    assert bool((found >= 0).all())
    if scene.kind.twin is not None:
        wanted = rw.attribute(scene.plain, scene.reference[:2], method="grad-cam", target=1)
        near(found, wanted, scene, what="map")


# --- samples without a clean counterpart ---------------------------------------------------------


def corner(scene: Scene) -> Tensor:
    """The mask of the mark."""
    mask = torch.zeros(scene.kind.size, scene.kind.size, dtype=torch.bool)
    side = 3 * scene.kind.size // 8
    mask[:side, :side] = True
    return mask


@call(
    "cleanse",
    lambda s: rw.cleanse(s.pairs.corrupted, corner(s), model=s.model, reference=s.reference),
)
def _(scene: Scene, found: Tensor) -> None:
    moved = (found != scene.pairs.corrupted).any(dim=1)
    assert bool(moved[:, corner(scene)].all())
    side = 3 * scene.kind.size // 8 + 1  # widened by a pixel
    assert not bool(moved[:, side:, side:].any())


@call("suggest_masks", lambda s: rw.suggest_masks(s.model, s.pairs.corrupted))
def _(scene: Scene, found: rw.SuggestedMasks) -> None:
    assert found.shape == (2, scene.kind.size, scene.kind.size)
    assert [bool(mask.any()) for mask in found] == found.found.tolist()


@call("reveal", lambda s: rw.reveal(s.model, s.reference))
def _(_: Scene, found: rw.Suspicions) -> None:
    assert all(0 <= one.pull <= 1 for one in found)


@call("dependence", lambda s: rw.dependence(s.model, s.pairs, s.reference, tried=20))
def _(_: Scene, found: rw.Dependence) -> None:
    assert found.before.effect.isfinite().all()
    assert (found.before.p > 0).all()
    assert (found.before.p <= 1).all()


@call("smallest_changes", lambda s: rw.smallest_changes(s.model, s.reference, steps=6))
def _(_: Scene, found: list[rw.SmallestChange]) -> None:
    assert 2 <= len(found) <= CLASSES
