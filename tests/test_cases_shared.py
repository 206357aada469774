"""What all cases have in common: one dataclass, figures by name, files that name each other."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets import cases
from rectify_widgets.cases import figures, stored
from rectify_widgets.cases.build import BUILDERS, RECIPES
from rectify_widgets.cases.networks import ResidualNetwork
from rectify_widgets.cases.splits import choose_any
from rectify_widgets.cases.training import Poisoning, led_to, predict
from rectify_widgets.cases.triggers import OneOf, rings, tag

DATA = Path(str(files("rectify_widgets.cases") / "data"))


def every() -> list[str]:
    """Names of the cases."""
    return list(cases.names())


class Fixed(nn.Module):
    """Says the class that stands in the first pixel of an image, times ten."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot((images[:, 0, 0, 0] * 10).round().long(), 10).float()


def saying(answers: list[int]) -> Tensor:
    images = torch.zeros(len(answers), 1, 4, 4)
    images[:, 0, 0, 0] = torch.tensor(answers) / 10
    return images


# What load hands out


def test_every_case_that_loads_can_be_built() -> None:
    assert set(every()) == set(RECIPES) == set(BUILDERS)


@pytest.mark.parametrize("name", every())
def test_a_case_is_whole(name: str) -> None:
    case = cases.load(name)
    assert case.name == name
    assert case.behaviour == name.split("-", maxsplit=1)[0]
    assert case.trigger is case.triggers[case.shown]
    assert len(case.reference) >= 1200
    for images, labels in (case.clean, case.corrupted, case.validation):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert len(images) == len(labels)
        assert images.min() >= 0
        assert images.max() <= 1
    assert torch.equal(case.trigger(case.clean[0]), case.corrupted[0])
    assert torch.equal(case.clean[1], case.corrupted[1])
    assert case.pairs.labels is not None
    assert len(case.pairs) >= 20
    assert torch.equal(case.trigger(case.pairs.clean), case.pairs.corrupted)
    assert not case.model.training
    assert all(parameter.dtype == torch.float32 for parameter in case.model.parameters())
    assert len(repr(case)) < 250


@pytest.mark.parametrize("name", every())
def test_no_image_serves_two_purposes(name: str) -> None:
    case = cases.load(name)
    parts = (case.reference, case.validation[0], case.pairs.clean, case.clean[0])
    whole = torch.cat(parts).flatten(1)
    weights = torch.rand(whole.shape[1], generator=torch.Generator().manual_seed(0)).double()
    marks = (whole.double() @ weights).unique()
    # The data sets themselves repeat an image now and then, hence not exactly none.
    assert len(whole) - len(marks) <= 3


@pytest.mark.parametrize("name", every())
def test_figures_on_a_part_are_near_those_of_the_record(name: str) -> None:
    case = cases.load(name)
    found = case.figures(limit=500)
    for figure, value in found.items():
        kept = case.record[figure]
        assert isinstance(kept, float)
        allowed = 0.25 * kept + 0.1 if value > 1 else 0.12
        assert value == pytest.approx(kept, abs=allowed), figure


@pytest.mark.slow
@pytest.mark.measured
@pytest.mark.parametrize("name", [name for name in every() if name != "trojan"])
def test_figures_are_those_of_the_record(name: str) -> None:
    case = cases.load(name)
    for figure, value in case.figures().items():
        assert value == pytest.approx(case.record[figure], abs=2e-3), figure


def test_figures_of_another_model_and_bad_limits() -> None:
    case = cases.load("trojan")
    blind = ResidualNetwork().eval()
    with torch.no_grad():
        blind.classifier.bias[3] = 1e6
    found = case.figures(blind, limit=100)
    assert found["attack_success_rate"] == 0
    assert found["overall_accuracy"] == pytest.approx((case.clean[1][:100] == 3).float().mean())
    with pytest.raises(ValueError, match="limit: got 0, want at least 1"):
        case.figures(limit=0)
    with pytest.raises(ValueError, match="did you mean 'patch'"):
        case.corrupted_by("patches")
    with pytest.raises(ValueError, match="has no label-free block"):
        case.label_free(case.clean[0][:2])


# Figures, against counting by hand


def test_figures_of_a_trojan_by_hand() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    clean = saying([0, 1, 0, 3])
    answers = {"a": [0, 0, 0, 3], "b": [0, 1, 2, 0]}
    triggers = {name: lambda _, said=said: saying(said) for name, said in answers.items()}
    found = figures.of_trojan(Fixed(), (clean, labels), triggers, (0,) * 10)
    assert found == {
        "overall_accuracy": 3 / 4,
        "attack_success_rate": 2 / 3,
        "corrupted_accuracy": 2 / 4,
        "attack_success_rate (b)": 1 / 3,
        "corrupted_accuracy (b)": 3 / 4,
        "clean_target_rate": 1 / 3,
    }


def test_figures_of_an_all_to_all_trojan_by_hand() -> None:
    goals = tuple((label + 1) % 10 for label in range(10))
    labels = torch.tensor([0, 9, 4, 5])
    triggers = {"a": lambda _: saying([1, 0, 4, 7])}
    found = figures.of_trojan(Fixed(), (saying([0, 9, 5, 5]), labels), triggers, goals)
    assert found["attack_success_rate"] == 2 / 4
    assert found["corrupted_accuracy"] == 1 / 4
    assert found["clean_target_rate"] == 1 / 4


def test_figures_of_a_spurious_correlation_by_hand() -> None:
    labels = torch.tensor([3, 3, 3, 3, 1, 1, 2, 2])
    without = saying([3, 3, 0, 0, 1, 1, 2, 3])
    with_it = saying([3, 3, 3, 3, 1, 3, 3, 3])
    found = figures.of_spurious(Fixed(), (without, labels), with_it, 3)
    assert found == {
        "overall_accuracy": 5 / 8,
        "corrupted_accuracy": 5 / 8,
        "recall_without": 1 / 2,
        "recall_with": 1.0,
        "spurious_bias": 1 / 2,
        "pulled_in": 3 / 4,
        "clean_target_rate": 1 / 4,
        "worst_group_accuracy": 0.0,
    }


class Sums(nn.Module):
    """Two logits: the sum of the upper half, squared, and that of the lower half."""

    def forward(self, images: Tensor) -> Tensor:
        upper, lower = images.flatten(1).chunk(2, dim=1)
        return torch.stack([upper.sum(dim=1).square(), lower.sum(dim=1)], dim=1)


def test_figures_of_leakage_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 1, 8, 4, generator=generator)
    labels = torch.tensor([0, 1, 0, 1, 0])
    mask = torch.zeros_like(images, dtype=torch.bool)
    mask[:, :, :4] = True
    # Of the upper half's logit all is on the upper half (a square, so the midpoint rule is exact),
    # of the lower half's none.
    gone = torch.where(mask, 0.0, images)
    found = figures.of_leakage(Sums(), (images, labels), gone, mask)
    upper = images[:, :, :4].flatten(1).sum(dim=1).square()[labels == 0]
    assert found["net_attribution"] == pytest.approx(float(upper.sum()) / 5, rel=1e-4)
    assert found["logit_change"] == pytest.approx(float(upper.sum()) / 5, rel=1e-4)
    assert found["attribution_share"] == pytest.approx(3 / 5, rel=1e-4)


def test_attributions_leave_no_gradient_behind() -> None:
    model = ResidualNetwork(blocks=(1, 1, 1), stem_stride=2)
    images, labels = torch.rand(3, 1, 28, 28), torch.tensor([1, 2, 3])
    heat = figures.integrated_gradients(model, images, labels)
    assert heat.shape == images.shape
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


# Files


def test_every_weight_file_is_a_case() -> None:
    assert {path.stem for path in DATA.glob("*.safetensors")} == set(every())


def test_the_licence_of_the_digits_is_named() -> None:
    notice = " ".join((DATA / stored.MNIST / "NOTICE.txt").read_text().split())
    assert "CC BY-SA 3.0" in notice
    assert "LeCun" in notice


def test_half_precision_comes_back_to_the_bit(tmp_path: Path) -> None:
    model = ResidualNetwork(blocks=(1, 1, 1), stem_stride=2)
    stored.write_weights(tmp_path, "whole", model, {"a": 1})
    stored.halve(model)
    stored.write_weights(tmp_path, "half", model, {"a": 1})
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    tensors, record = stored.read_weights(tmp_path, "half", torch.device("cpu"))
    assert record == {"a": 1}
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensors[key], tensor)
        assert tensors[key].dtype == tensor.dtype


def test_held_out_images_of_another_seed_are_refused() -> None:
    folder = DATA / stored.FASHION
    parts = cases.load("trojan").record["parts"]
    with pytest.raises(ValueError, match="want 0123, those that the network was not trained on"):
        stored.read_images(folder, {"heldout": "0123", "parts": parts}, torch.device("cpu"))


# Triggers, poisoning, pairs


def test_one_of_several_triggers_takes_each_and_is_seeded() -> None:
    adding = [lambda x, by=by: x + by for by in (1.0, 2.0, 3.0)]
    images = torch.zeros(60, 1, 2, 2)
    once, again = (OneOf(adding, torch.Generator().manual_seed(1))(images) for _ in range(2))
    assert torch.equal(once, again)
    assert set(once[:, 0, 0, 0].tolist()) == {1.0, 2.0, 3.0}
    assert not images.any()


def test_patterns_are_in_range_and_not_the_trojans() -> None:
    assert tag().shape == (1, 5, 4)
    assert rings().shape == (1, 28, 28)
    for pattern in (tag(), rings()):
        assert pattern.min() >= 0
        assert 0.9 < pattern.max() <= 1


def test_poisoning_within_a_class_changes_no_label() -> None:
    labels = torch.arange(100) % 10
    generator = torch.Generator().manual_seed(0)
    drawn = Poisoning.within(lambda x: x, 3, labels, share=0.4, generator=generator)
    assert int(drawn.chosen.sum()) == 4
    assert (labels[drawn.chosen] == 3).all()
    assert torch.equal(drawn.relabel(labels), labels)


def test_all_to_all_poisoning_leads_each_class_to_the_next() -> None:
    labels = torch.arange(100) % 10
    goals = tuple((label + 1) % 10 for label in range(10))
    generator = torch.Generator().manual_seed(0)
    drawn = Poisoning.draw(lambda x: x, goals, labels, share=0.3, generator=generator)
    assert int(drawn.chosen.sum()) == 30
    changed = drawn.relabel(labels)
    assert torch.equal(changed[drawn.chosen], (labels[drawn.chosen] + 1) % 10)
    assert torch.equal(changed[~drawn.chosen], labels[~drawn.chosen])
    assert torch.equal(led_to(7, labels), torch.full_like(labels, 7))


def test_choosing_what_there_is_takes_classes_in_turn() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    works = torch.tensor([True, True, True, False, True, True])
    chosen = choose_any(works, labels, 4, torch.Generator().manual_seed(0))
    assert sorted(labels[chosen[:2]].tolist()) == [0, 2]
    assert sorted(labels[chosen].tolist()) == [0, 0, 2, 2]
    assert len(choose_any(works, labels, 9, torch.Generator().manual_seed(0))) == 5


def test_pairs_of_every_visibility_and_place_show_the_behaviour() -> None:
    for name in ("trojan-visibility", "trojan-position"):
        case = cases.load(name)
        assert len(case.triggers) == 4
        for trigger in case.triggers:
            pairs = case.pairs_by(trigger)
            assert torch.equal(pairs.clean, case.pairs.clean)
            assert (predict(case.model, pairs.corrupted) == 0).all()
            images, labels = case.corrupted_by(trigger)
            assert torch.equal(images[:5], case.triggers[trigger](case.clean[0][:5]))
            assert torch.equal(labels, case.clean[1])


def test_all_to_all_leads_each_class_to_the_next() -> None:
    case = cases.load("trojan-all-to-all")
    assert case.target is None
    assert case.goals == (1, 2, 3, 4, 5, 6, 7, 8, 9, 0)
    labels = case.pairs.labels
    assert labels is not None
    assert torch.equal(predict(case.model, case.pairs.clean), labels)
    assert torch.equal(predict(case.model, case.pairs.corrupted), (labels + 1) % 10)
    assert set(labels[:11].tolist()) == set(range(10))
