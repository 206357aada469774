"""Class artefact compensation: the direction, what is put behind a layer, and the three methods.

Oracles: numpy's covariance, plain arithmetic on activations taken by a hook of this file, and finite
differences.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.baselines import run
from rectify_widgets.baselines.latent import (
    Compensation,
    Concept,
    LayerWrapper,
    Mask,
    appended,
    find_concept,
    insert,
    pattern_cav,
)
from rectify_widgets.baselines.right_reason_clarc import penalised
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.closed_form import Unreached
from rectify_widgets.engine.model.running import eval_mode
from tests.engine.models import make
from tests.engine.traces import Tiny, images
from tests.test_baselines import batch_of, repair, through, tiny_pairs, tiny_task

SHAPES = {"map": (5, 4, 3, 2), "tokens": (5, 7, 4), "vector": (5, 6)}


pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(size: int) -> Tensor:
    vector = random(size, seed=1)
    scaled: Tensor = vector / vector.norm()
    return scaled


def output_of(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    return through(model, layer, x)[1]


def concept_of(layer: str, space: str) -> Concept:
    """That of two pairs of `Tiny`."""
    task = tiny_task()
    with eval_mode(task.problem.model) as model:
        return find_concept(model, task, {"layer": layer, "space": space})


# The direction


def test_the_pattern_is_covariance_over_variance() -> None:
    features, present = random(40, 6), torch.arange(40) % 3 == 0
    found = pattern_cav(features, present)
    wanted = np.array(
        [
            np.cov(column, present.numpy())[0, 1] / np.var(present.numpy(), ddof=1)
            for column in features.numpy().T
        ]
    )
    np.testing.assert_allclose(found.numpy(), wanted / np.linalg.norm(wanted), rtol=1e-12)


def test_the_pattern_of_samples_that_do_not_differ_is_refused() -> None:
    with pytest.raises(Unreached, match="no CAV"):
        pattern_cav(torch.ones(4, 3), torch.tensor([True, True, False, False]))


@pytest.mark.parametrize("space", ["channel", "map"])
def test_the_concept_is_the_mean_change_of_the_pairs(space: str) -> None:
    model, pairs, concept = Tiny(), tiny_pairs(), concept_of("third", space)
    outputs = [
        output_of(model, "third", x) for x in (pairs.corrupted, pairs.clean, images(20, seed=5))
    ]
    seen = [o.flatten(2).amax(2) if space == "channel" else o.flatten(1) for o in outputs]
    change = (seen[0] - seen[1]).mean(dim=0)
    torch.testing.assert_close(concept.vector, change / change.norm())
    assert concept.corrupted == pytest.approx(float((seen[0] @ concept.vector).mean()), rel=1e-5)
    assert concept.clean == pytest.approx(float((seen[2] @ concept.vector).mean()), rel=1e-5)


# What is put behind a layer


@pytest.mark.parametrize("space", ["channel", "map"])
@pytest.mark.parametrize("kind", SHAPES)
def test_compensation_removes_the_direction_exactly_and_only_once(kind: str, space: str) -> None:
    a = random(*SHAPES[kind])
    channels = a.shape[1] if a.ndim in {2, 4} else a.shape[2]
    vector = unit(channels if space == "channel" else a[0].numel())
    module = Compensation(Concept("x", space, vector, 0.7, 0.0), 0.7, nn.Linear(1, 1).double())
    once = module(a)
    torch.testing.assert_close(module(once), once, rtol=1e-12, atol=1e-12)  # idempotent

    def seen(b: Tensor) -> Tensor:
        if space == "map":
            return b.flatten(1)
        return b if b.ndim == 2 else b.amax(dim=1) if b.ndim == 3 else b.amax(dim=(2, 3))

    torch.testing.assert_close(seen(once) @ vector, torch.full((5,), 0.7, dtype=a.dtype))
    across = torch.eye(len(vector), dtype=a.dtype) - torch.outer(vector, vector)
    torch.testing.assert_close(seen(once) @ across, seen(a) @ across)  # and nothing else


def test_a_module_can_be_put_behind_a_layer_for_a_while_or_for_good() -> None:
    model, x = make("residual"), torch.rand(3, 3, 9, 9)
    before, names = model(x), list(model.state_dict())
    mask = Mask(torch.zeros(8))
    with appended(model, "block2.conv1", mask):
        masked = model(x)
        assert not torch.equal(masked, before)
        assert output_of(model, "block2.conv1", x).abs().max() == 0
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == names
    twin = copy.deepcopy(model)
    insert(twin, "block2.conv1", mask)
    assert torch.equal(twin(x), masked)
    assert torch.equal(copy.deepcopy(twin)(x), masked)
    part = twin.get_submodule("block2.conv1")
    assert isinstance(part, LayerWrapper)
    assert part.weight is part.layer.weight  # a network may ask for it
    with pytest.raises(AttributeError, match="nothing"):
        _ = part.nothing


def test_a_layer_with_its_own_way_of_being_copied_is_copied_as_a_whole() -> None:
    class Own(nn.Linear):
        def __deepcopy__(self, memo: dict[int, object]) -> Own:
            twin = Own(4, 4)
            twin.load_state_dict(self.state_dict())
            return twin

    model = nn.Sequential(Own(4, 4), nn.Linear(4, 2))
    insert(model, "0", Mask(torch.tensor([1.0, 0.0, 1.0, 0.0])))
    twin, x = copy.deepcopy(model), torch.rand(3, 4)
    assert isinstance(twin[0], LayerWrapper)
    assert torch.equal(twin(x), model(x))


# Projective


@pytest.mark.parametrize("space", ["channel", "map"])
@pytest.mark.parametrize("layer", ["second", "third"])
def test_p_clarc_puts_every_input_where_clean_ones_lie(layer: str, space: str) -> None:
    result = repair("p_clarc", layer=layer, space=space)
    assert dict(result.options) == {"layer": layer, "space": space}
    concept = concept_of(layer, space)
    for x in (tiny_pairs().corrupted, images(7, seed=8)):
        a = output_of(result.model, layer, x)
        seen = a.flatten(2).amax(2) if space == "channel" else a.flatten(1)
        along = seen @ concept.vector
        torch.testing.assert_close(along, torch.full_like(along, concept.clean))


def test_p_clarc_works_on_half_precision_and_tokens() -> None:
    x = torch.rand(6, 3, 9, 9)
    bad = x.clone()
    bad[:, :, 3:6, 3:6] = 1.0
    model = make("transformer")
    for space in ("channel", "map"):
        result = run("p_clarc", model, SamplePairs(bad, x), layer="block", space=space)
        assert torch.isfinite(result.model(bad)).all()
        assert not torch.equal(result.model(bad), model(bad))
    halved = run("p_clarc", model.bfloat16(), SamplePairs(bad, x), layer="block", space="map").model
    assert halved(x.bfloat16()).dtype == torch.bfloat16


# Augmentative


def test_a_clarc_trains_with_every_input_where_corrupted_ones_lie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rectify_widgets.baselines import augmentative_clarc as room

    model, seen = Tiny(), []

    def watching(work: nn.Module, *_: object) -> None:
        seen.append(output_of(work, "third", images(9, seed=8)).flatten(2).amax(2))

    monkeypatch.setattr(room, "train", watching)
    result = repair("a_clarc", layer="third", space="channel")
    concept = concept_of("third", "channel")
    along = seen[0] @ concept.vector
    torch.testing.assert_close(along, torch.full_like(along, concept.corrupted))
    assert [type(part) for part in result.model.modules()] == [type(p) for p in model.modules()]
    x = images(5, seed=9)
    assert torch.equal(result.model(x), model(x))  # nothing stays behind but what was trained


@pytest.mark.parametrize("name", ["a_clarc", "rr_clarc"])
def test_linear_layers_alone_are_trained_by_default(name: str) -> None:
    result = repair(name, layer="third", steps=3, learning_rate=0.1, validation=None)
    model = Tiny()
    changed = {
        key for key, value in result.model.named_parameters()
        if not torch.equal(value, model.get_parameter(key))
    }  # fmt: skip
    assert changed == {"head.weight", "head.bias"}


# Right reason


@pytest.mark.parametrize("space", ["channel", "map"])
@pytest.mark.parametrize("layer", ["second", "third"])
def test_the_penalty_is_the_squared_slope_along_the_direction(layer: str, space: str) -> None:
    model = Tiny().double()
    model.get_submodule("activation").inplace = True  # type: ignore[assignment]
    x, y = images(4, seed=2).double(), torch.tensor([0, 1, 2, 3])
    a = output_of(model, layer, x)
    vector = unit(a.shape[1] if space == "channel" else a[0].numel())
    batch = batch_of(x, y)
    losses = [
        penalised(
            Concept(layer, space, vector, 0.0, 0.0), weight, torch.Generator().manual_seed(6)
        )(model, batch)
        for weight in (0.0, 1.0)
    ]
    found = float((losses[1] - losses[0]).detach())

    signs = torch.randint(0, 2, (4, 4), generator=torch.Generator().manual_seed(6)).double() * 2 - 1
    step = 1e-6
    along = vector.reshape(1, -1, 1, 1) if space == "channel" else vector.reshape(a.shape[1:])

    def total(by: float) -> Tensor:
        handle = model.get_submodule(layer).register_forward_hook(
            lambda _, __, output: output + by * along
        )
        with torch.no_grad():
            scores: Tensor = (model(x) * signs).sum(dim=1)
        handle.remove()
        return scores

    slope = (total(step) - total(-step)) / (2 * step)
    if space == "channel":  # the gradient is averaged over positions, a common shift adds it up
        slope = slope / a[0, 0].numel()
    assert found == pytest.approx(float(slope.square().mean()), rel=1e-5)
    assert found > 0


def test_rr_clarc_flattens_the_direction() -> None:
    concept, x = concept_of("third", "channel"), images(16, seed=8)
    batch = batch_of(x, Tiny()(x).argmax(1))

    def slope(model: nn.Module) -> float:
        losses = [
            penalised(concept, weight, torch.Generator().manual_seed(0))(model, batch)
            for weight in (0.0, 1.0)
        ]
        return float((losses[1] - losses[0]).detach())

    slopes = [
        slope(
            repair(
                "rr_clarc", layer="third", space="channel", penalty=penalty, learning_rate=0.01,
                trained="all", steps=30,
            ).model
        )
        for penalty in (0.0, 1e4)
    ]  # fmt: skip
    assert slopes[1] < 0.2 * slopes[0]
