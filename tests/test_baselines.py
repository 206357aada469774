"""What all peers share: the frame, the tuner, the registry, and leaving no trace.

Oracles are counts and formulas worked out here; the networks are those of the engine's tests.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.baselines import BASELINES, Baseline, Method, Option, run
from rectify_widgets.baselines.latent import latent_layers
from rectify_widgets.baselines.method import Options
from rectify_widgets.baselines.projective_clarc import project
from rectify_widgets.baselines.task import Batch, Task, draw_batch, pose_task
from rectify_widgets.baselines.tuning import PENALTY, Validator, grid, screened
from rectify_widgets.engine.base.progress import Cancelled, Monitor
from rectify_widgets.engine.data.corruption import Transplant
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.closed_form import Unreached
from rectify_widgets.engine.measure.metrics import evaluate
from tests.engine.models import make
from tests.engine.toy import Toy, load, samples
from tests.engine.traces import Tiny, corrupted, images, untouched

QUICK: dict[str, dict[str, Any]] = {
    "fine_tuning": {"steps": 3, "trained": "all"},
    "fine_pruning": {"steps": 2},
    "p_clarc": {},
    "a_clarc": {"steps": 2, "layer": "second"},
    "rr_clarc": {"steps": 2, "layer": "second"},
    "rewriting": {"steps": 60},
    "right_reasons": {"steps": 2},
    "another_explanation": {"steps": 2},
    "last_layer": {"strength": 0.03},
    "neuron_pruning": {"steps": 2},
    "sharpness_aware": {"steps": 3, "learning_rate": 0.01},
}
"""Options that make a method quick on `Tiny`; what is left out is tuned."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def toy() -> Toy:
    return load()


def tiny_pairs(count: int = 2) -> SamplePairs:
    clean = images(count, seed=3)
    return SamplePairs(corrupted(clean), clean)


def tiny_validation() -> tuple[Tensor, Tensor]:
    return images(12, seed=4), torch.arange(12) % 4


def tiny_input() -> dict[str, Any]:
    return {"reference": images(20, seed=5), "validation": tiny_validation()}


def tiny_task(**changes: Any) -> Task:
    given = {"model": Tiny(), "pairs": tiny_pairs(), **tiny_input(), **changes}
    return pose_task(**given)


def batch_of(x: Tensor, y: Tensor, masks: Tensor | None = None) -> Batch:
    weights = torch.full((len(x),), 1 / len(x), dtype=x.dtype)
    return Batch(x, y, torch.zeros_like(x).bool() if masks is None else masks, weights)


def repair(method: str | Method, **changes: Any) -> Baseline:
    """A method on `Tiny`, with two pairs, twenty references and a validation split."""
    given = {"model": Tiny(), "pairs": tiny_pairs(), **tiny_input(), **changes}
    return run(method, **given)


def through(model: nn.Module, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a layer, seen from outside."""
    seen: list[tuple[Tensor, Tensor]] = []
    with (
        model.get_submodule(layer).register_forward_hook(
            lambda _, given, output: seen.append((given[0].clone(), output.clone()))
        ),
        torch.no_grad(),
    ):
        model(x)
    (found,) = seen
    return found


# The registry


@pytest.mark.parametrize("name", BASELINES)
def test_a_method_says_what_it_takes_and_what_differs_from_the_paper(name: str) -> None:
    method = BASELINES[name]
    assert method.name == name
    assert set(QUICK[name]) <= set(method.options)
    assert [line.split(":")[0].strip() for line in str(method).splitlines()] == [
        name, *method.options
    ]  # fmt: skip
    documentation = vars(inspect.getmodule(method.attempt))["__doc__"]
    assert "What differs" in " ".join(documentation.split())


# No trace, same seed same weights, cancelled when asked


@pytest.mark.parametrize("name", BASELINES)
def test_a_method_changes_a_copy_alone_and_the_same_seed_gives_the_same(name: str) -> None:
    model = Tiny()
    model.head.bias.requires_grad = False
    model.train()
    model.norm.eval()
    pairs, given = tiny_pairs(), {**tiny_input(), **QUICK[name]}
    shares: list[float] = []
    with untouched(model, given["reference"], *given["validation"], pairs.clean, pairs.corrupted):
        first = run(name, model, pairs, progress=lambda share, _: shares.append(share), **given)
        second = run(name, model, pairs, **given)
    assert first.method == name
    assert first.seconds > 0
    assert dict(first.options) == dict(second.options)
    assert [trial.score for trial in first.trials] == [trial.score for trial in second.trials]
    states = [result.model.state_dict() for result in (first, second)]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    # The copy has the flags of the model, and no hooks or gradients.
    flags = {name: part.training for name, part in model.named_modules()}
    for part_name, part in first.model.named_modules():
        assert flags.get(part_name.replace(".layer", ""), True) == part.training, part_name
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
    held = [key for key, one in first.model.named_parameters() if not one.requires_grad]
    assert [key.replace(".layer", "") for key in held] == ["head.bias"]
    assert all(one.grad is None for one in first.model.parameters())


@pytest.mark.parametrize("name", BASELINES)
def test_the_changed_copy_can_be_copied_and_its_state_loaded(name: str) -> None:
    result = repair(name, validation=None, **QUICK[name])
    assert result.trials == ()
    x = images(5, seed=9)
    again = copy.deepcopy(result.model)
    assert torch.equal(again(x), result.model(x))
    state = {key: value.clone() for key, value in result.model.state_dict().items()}
    with torch.no_grad():
        for value in again.state_dict().values():
            value.zero_() if value.is_floating_point() else None
    assert not torch.equal(again(x), result.model(x))
    again.load_state_dict(state)
    assert torch.equal(again(x), result.model(x))


@pytest.mark.parametrize("name", BASELINES)
def test_cancel_stops_at_once_and_leaves_no_trace(name: str) -> None:
    model = Tiny()
    for patience in (0, 3):
        asked = [0]

        def cancel(asked: list[int] = asked, patience: int = patience) -> bool:
            asked[0] += 1
            return asked[0] > patience

        with untouched(model), pytest.raises(Cancelled):
            repair(name, model=model, cancel=cancel, **QUICK[name])
        assert asked[0] == patience + 1


@pytest.mark.parametrize(
    "name", ["fine_tuning", "a_clarc", "rr_clarc", "right_reasons", "sharpness_aware"]
)
def test_another_seed_draws_other_batches(name: str) -> None:
    changes = {"reference": images(90, seed=5), "validation": None}
    weights = [
        repair(name, **{**QUICK[name], "learning_rate": 0.05, **changes}, seed=seed)
        .model.get_parameter("head.weight")
        for seed in (0, 1)
    ]  # fmt: skip
    assert not torch.equal(*weights)


@pytest.mark.parametrize("name", ["residual", "transformer", "mobile", "perceptron", "padded"])
def test_other_networks(name: str) -> None:
    model = make(name)
    x = torch.rand(40, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    bad = x.clone()
    bad[:, :, 5:8, 5:8] = 1.0
    pairs = SamplePairs(bad[:3], x[:3])
    for method in BASELINES:
        options = {key: value for key, value in QUICK[method].items() if key == "steps"}
        result = run(method, model, pairs, reference=x, **options)
        assert torch.isfinite(result.model(x)).all(), method


# Bad input


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("fine_tuning", {"model": 3}, TypeError, "model: got int"),
    ("fine_tuning", {"pairs": 3}, TypeError, "pairs: got int"),
    ("fine_tuning", {"seed": -1}, ValueError, "seed: got -1"),
    ("fine_tuning", {"augmented": 1}, TypeError, "augmented: got 1"),
    ("fine_tuning", {"augmented": True, "reference": None}, ValueError, "want reference="),
    ("fine_tuning", {"validation": images(3)}, TypeError, "validation: got Tensor"),
    ("fine_tuning", {"learning_rate": -1.0}, ValueError, "learning_rate: got -1"),
    ("fine_tuning", {"steps": 0}, ValueError, "steps: got 0"),
    ("fine_tuning", {"steps": 1.5}, TypeError, "steps: got 1.5"),
    ("fine_tuning", {"trained": "lineer"}, ValueError, "did you mean 'linear'"),
    ("fine_tuning", {"cancel": 3}, TypeError, "cancel: got int"),
    ("fine_pruning", {"reference": None}, ValueError, "reference: got None"),
    ("fine_pruning", {"max_drop": "much"}, TypeError, "max_drop: got 'much'"),
    ("p_clarc", {"layer": "secund"}, ValueError, "did you mean 'second'"),
    ("p_clarc", {"layer": 3}, ValueError, "layer: got 3"),
    ("p_clarc", {"layer": "head"}, ValueError, "layer: got 'head'"),
    ("p_clarc", {"space": "chanel"}, ValueError, "did you mean 'channel'"),
    ("rr_clarc", {"penalty": -1}, ValueError, "penalty: got -1"),
    ("rewriting", {"reference": None}, ValueError, "reference: got None"),
    ("rewriting", {"layer": "norm"}, ValueError, "no layer 'norm'"),
    ("another_explanation", {"explanations": 0}, ValueError, "explanations: got 0"),
    ("last_layer", {"reference": None}, ValueError, "reference: got None"),
    ("last_layer", {"strength": 0}, ValueError, "strength: got 0"),
    ("last_layer", {"layer": "third"}, ValueError, "layer: got 'third', want one of 'head'"),
    ("neuron_pruning", {"reference": None}, ValueError, "reference: got None"),
    ("neuron_pruning", {"ascents": 0}, ValueError, "ascents: got 0"),
    ("neuron_pruning", {"threshold": -0.1}, ValueError, "threshold: got -0.1"),
    ("neuron_pruning", {"trade_off": 1.5}, ValueError, "trade_off: got 1.5"),
    ("sharpness_aware", {"radius": -1}, ValueError, "radius: got -1"),
    ("fine_tuning", {"ridge": 3}, TypeError, "ridge: fine_tuning has no .*it has learning_rate"),
    ("p_clarc", {"spaces": "map"}, TypeError, "did you mean 'space'"),
    ("fine_tunning", {}, ValueError, "method: got 'fine_tunning'.*did you mean 'fine_tuning'"),
]


@pytest.mark.parametrize(("name", "changes", "error", "message"), BAD)
def test_bad_input_is_refused(
    name: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = Tiny()
    with untouched(model), pytest.raises(error, match=message):
        repair(name, **{"model": model, "validation": None, **changes})


# What there is to learn from


def test_examples_are_pairs_and_references_under_the_models_own_labels() -> None:
    model, task = Tiny(), tiny_task()
    with torch.no_grad():
        own = model(images(20, seed=5)).argmax(dim=1)
        labels = model(tiny_pairs().clean).argmax(dim=1)
    clean, wrong = task.clean(), task.corrupted()
    assert torch.equal(clean.inputs, torch.cat([tiny_pairs().clean, images(20, seed=5)]))
    assert torch.equal(clean.labels, torch.cat([labels, own]))
    assert torch.equal(wrong.inputs, tiny_pairs().corrupted)
    assert torch.equal(wrong.labels, labels)
    assert wrong.masks[:, :, :3, :3].all()
    assert wrong.masks.sum() == 2 * 3 * 9
    assert not clean.masks[2:].any()


def test_augmented_pairs_are_the_references_with_the_corruption() -> None:
    task = tiny_task(augmented=True)
    assert len(task.pairs) == 22
    assert len(task.problem.pairs) == 2
    assert torch.equal(task.pairs.corrupted[2:], corrupted(images(20, seed=5)))
    assert len(task.clean()) == 22


def test_half_of_the_weight_is_on_corrupted_inputs() -> None:
    task = tiny_task()
    batch = draw_batch(torch.Generator().manual_seed(0), task.corrupted(), task.clean())
    assert batch.inputs.shape == (24, 3, 8, 8)
    assert batch.weights[:2].sum().item() == pytest.approx(0.5)
    assert batch.weights.sum().item() == pytest.approx(1.0)
    assert len({tuple(row.flatten().tolist()) for row in batch.inputs}) == 24


# The tuner


def shifting(model: nn.Module, _: Task, options: Options, __: Monitor) -> None:
    """A stand-in for a method: moves the scores of class 0."""
    if options["shift"] == "unreached":
        raise Unreached("layer: not reached")
    with torch.no_grad():
        model.get_parameter("head.bias")[0] += options["shift"] * options.get("sign", 1)


def stand_in(values: list[Any]) -> Option:
    return Option("", lambda _: values, lambda _, __, given: given)


def tuned(values: dict[str, list[Any]], **changes: Any) -> Baseline:
    """One option at a time."""
    axes = tuple({name: stand_in(some)} for name, some in values.items())
    return repair(Method("stand-in", axes, shifting), **changes)


def test_the_tuner_takes_the_best_score_and_writes_down_every_trial() -> None:
    x = tiny_validation()[0]
    with torch.no_grad():
        y = Tiny()(x).argmax(dim=1)  # so that every change costs accuracy
    result = tuned({"shift": [0.0, 1.0, 50.0], "sign": [1, -1]}, validation=(x, y))
    model, xt = Tiny(), Transplant(tiny_pairs())(x)
    best = -9.0
    before = evaluate(model, (x, y), (xt, y))
    for trial in result.trials:
        changed = Tiny()
        shifting(changed, tiny_task(), trial.options, Monitor())
        report = evaluate(changed, (x, y), (xt, y))
        assert trial.corrupted_accuracy == report.corrupted_accuracy
        assert trial.clean_accuracy == report.overall_accuracy
        lost = max(before.overall_accuracy - report.overall_accuracy, 0.0)
        assert trial.score == pytest.approx((report.corrupted_accuracy or 0.0) - PENALTY * lost)
        best = max(best, trial.score or -9.0)
    assert min(trial.clean_accuracy for trial in result.trials) < before.overall_accuracy
    assert [trial.options["shift"] for trial in result.trials[:3]] == [0.0, 1.0, 50.0]
    assert len(result.trials) == 4
    assert max(t.score for t in result.trials if t.score is not None) == best
    chosen = next(t for t in result.trials if dict(t.options) == dict(result.options))
    assert chosen.score == best
    assert str(len(result.trials)) in repr(result)
    assert str(result).count("corrupted") == 4


def test_a_tie_goes_to_the_published_default() -> None:
    assert tuned({"shift": [0.0, 1e-9, -1e-9]}).options["shift"] == 0.0


def test_without_validation_the_published_defaults_are_taken() -> None:
    result = tuned({"shift": [3.0, 4.0]}, validation=None)
    assert dict(result.options) == {"shift": 3.0}
    assert result.trials == ()
    assert result.model.get_parameter("head.bias")[0] == Tiny().head.bias[0] + 3


def test_weights_that_are_nan_are_never_chosen() -> None:
    result = tuned({"shift": [float("nan"), -80.0]})
    assert result.options["shift"] == -80.0
    assert result.trials[0].score is None
    assert "–" in str(result)
    for validation in (None, tiny_validation()):
        with pytest.raises(ValueError, match="infinite or NaN"):
            tuned({"shift": [float("nan")]}, validation=validation)


def test_layers_that_the_corruption_does_not_reach_are_passed_over() -> None:
    assert tuned({"shift": ["unreached", -80.0]}).options["shift"] == -80.0
    with pytest.raises(Unreached, match="not reached"):
        tuned({"shift": ["unreached"]})


def test_options_that_hang_together_are_tried_together() -> None:
    choices = grid({"shift": [0.0, 1.0], "sign": [1, -1]})
    assert choices == [
        {"shift": 0.0, "sign": 1}, {"shift": 0.0, "sign": -1},
        {"shift": 1.0, "sign": 1}, {"shift": 1.0, "sign": -1},
    ]  # fmt: skip
    axis = {"shift": stand_in([0.0, 1.0]), "sign": stand_in([1, -1])}
    result = repair(Method("stand-in", (axis,), shifting))
    assert [trial.options for trial in result.trials] == choices


# Layers to choose from


def test_a_costly_method_tries_the_layers_where_projecting_does_best() -> None:
    task = tiny_task()
    assert task.validation is not None
    places = grid({"space": ["map", "channel"], "layer": ["third", "second", "first"]})
    found = screened(project, task, places, Validator(task, task.validation), Monitor())
    scores = []
    for place in places:
        (trial,) = repair("p_clarc", **place).trials
        assert trial.score is not None
        scores.append(trial.score)
    assert found[0] == places[0]
    rest = [scores[places.index(place)] for place in found[1:]]
    assert rest == sorted(scores[1:], reverse=True)[:4]
    result = repair("a_clarc", steps=1, learning_rate=0.1, trained="linear")
    assert len(result.trials) == 5


def test_latent_layers_are_called_once_and_lie_before_the_scores() -> None:
    x = torch.rand(2, 3, 9, 9)
    task = pose_task(make("residual"), SamplePairs(x + 1, x), None, None)
    assert latent_layers(task.problem) == [
        "block2", "block2.short", "block2.conv2", "block2.conv1", "block1", "block1.conv2",
        "block1.conv1", "stem",
    ]  # fmt: skip


# On a network with a backdoor


FIXED: dict[str, dict[str, Any]] = {
    "fine_tuning": {"learning_rate": 0.05, "trained": "all", "steps": 60},
    "fine_pruning": {"layer": "block2", "max_drop": 0.02, "learning_rate": 0.05, "steps": 60},
    "p_clarc": {},
    "a_clarc": {"learning_rate": 0.01, "layer": "block1", "space": "map", "steps": 40},
    "rr_clarc": {"learning_rate": 0.01, "layer": "block2", "space": "channel", "steps": 30},
    "rewriting": {"learning_rate": 0.05, "ridge": 0.01, "layer": "block2.conv1"},
    "right_reasons": {"learning_rate": 0.01, "penalty": 1.0, "steps": 100},
    "last_layer": {"strength": 0.3},
    "neuron_pruning": {"perturbation": 0.4, "threshold": 0.6, "learning_rate": 0.2, "steps": 100},
    "sharpness_aware": {"learning_rate": 0.05, "radius": 0.1, "steps": 60},
}


@pytest.mark.parametrize("name", FIXED)
def test_a_backdoor_becomes_weaker_at_little_cost(name: str, toy: Toy) -> None:
    before = toy.rates(toy.model)
    assert before[1] > 0.95
    result = run(
        name, toy.model, SamplePairs(toy.pairs.corrupted, toy.pairs.clean),
        reference=toy.reference,
        validation=samples(100, seed=8), **FIXED[name],
    )  # fmt: skip
    accuracy, attack = toy.rates(result.model)
    assert attack < 0.7 * before[1]
    assert accuracy > before[0] - 0.1
