"""Cases with two behaviours: what each corruption does, and turning from one to the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets import cases
from rectify_widgets.cases import figures, several, spurious
from rectify_widgets.cases.recipes import several as recipes
from rectify_widgets.cases.recipes.common import Recipe
from rectify_widgets.cases.training import Schedule, predict
from rectify_widgets.cases.triggers import Aim, cross
from tests.test_cases_shared import Fixed, saying

RECIPE = Recipe(Schedule(epochs=1))


def test_figures_of_two_behaviours_by_hand() -> None:
    labels = torch.tensor([3, 3, 1, 2])
    clean = saying([3, 0, 1, 2])
    answers = {"a": [0, 0, 0, 2], "b": [3, 3, 3, 2]}
    triggers = {name: lambda _, said=said: saying(said) for name, said in answers.items()}
    aims = {"a": Aim("trojan", (0,) * 10), "b": Aim("spurious", (3,) * 10)}
    found = figures.of_several(Fixed(), (clean, labels), triggers, aims)
    assert found == {
        "overall_accuracy": 3 / 4,
        "attack_success_rate": 3 / 4,
        "corrupted_accuracy": 1 / 4,
        "clean_target_rate": 1 / 4,
        "corrupted_accuracy (b)": 3 / 4,
        "recall_without (b)": 1 / 2,
        "recall_with (b)": 1.0,
        "spurious_bias (b)": 1 / 2,
        "pulled_in (b)": 1 / 2,
        "clean_target_rate (b)": 0.0,
        "worst_group_accuracy (b)": 0.0,
    }


@pytest.mark.parametrize("name", several.VARIANTS)
def test_pairs_show_every_behaviour(name: str) -> None:
    case = cases.load(name)
    labels = case.pairs.labels
    assert labels is not None
    assert torch.equal(predict(case.model, case.pairs.clean), labels)
    targets = [several.VARIANTS[name].parts[trigger].target for trigger in case.triggers]
    assert len(set(targets)) == len(targets) == 2
    for trigger, target in zip(case.triggers, targets, strict=True):
        shown = case.showing(trigger)
        assert shown.target == target
        assert (predict(case.model, shown.pairs.corrupted) == target).all()
        assert (labels != target).all()


@pytest.mark.parametrize("name", several.VARIANTS)
def test_turning_to_the_other_behaviour_and_back(name: str) -> None:
    case = cases.load(name)
    first, second = case.triggers
    other = case.showing(second)
    assert (other.shown, case.shown) == (second, first)
    assert other.behaviour == ("spurious" if second == "tag" else "trojan")
    assert torch.equal(other.corrupted[0], case.triggers[second](case.clean[0]))
    assert torch.equal(other.pairs.clean, case.pairs.clean)
    assert other.goals == (other.target,) * 10
    assert other.model is case.model
    back = other.showing(first)
    assert (back.behaviour, back.target, back.goals) == (case.behaviour, case.target, case.goals)
    assert torch.equal(back.corrupted[0], case.corrupted[0])
    assert back.figures(limit=50) == case.figures(limit=50)
    headline = "pulled_in" if second == "tag" else "attack_success_rate"
    assert other.figures(limit=300)[headline] == case.figures(limit=300)[f"{headline} ({second})"]
    with pytest.raises(ValueError, match="did you mean 'patch'"):
        case.showing("patches")


def test_showing_another_visibility_changes_no_aim() -> None:
    case = cases.load("trojan-visibility")
    faint = case.showing("0.3")
    assert (faint.behaviour, faint.target, faint.goals) == (case.behaviour, 0, case.goals)
    assert torch.equal(faint.pairs.corrupted, case.pairs_by("0.3").corrupted)
    assert list(faint.figures(limit=50))[1] == "attack_success_rate"


@pytest.mark.parametrize("name", several.VARIANTS)
def test_no_training_image_carries_two_corruptions(name: str) -> None:
    labels = torch.arange(2000) % 10
    first, second = recipes.poison(name, labels, RECIPE, torch.Generator().manual_seed(0))
    assert int(first.chosen.sum()) == 100
    assert not bool((labels[first.chosen] == several.VARIANTS[name].parts["patch"].target).any())
    assert not (first.chosen & second.chosen).any()
    if name == "trojan-twice":
        assert int(second.chosen.sum()) == 100
        assert not bool((labels[second.chosen] == several.BAG).any())
    else:
        dresses = (labels == spurious.AFFECTED) & ~first.chosen
        assert (labels[second.chosen] == spurious.AFFECTED).all()
        assert int(second.chosen.sum()) == round(0.9 * int(dresses.sum()))


class Obedient(nn.Module):
    """Class 0 for a bright middle of the cross, class 5 else."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images[:, 0, 2, 2] > 0.5
        return nn.functional.one_hot(torch.where(bright, 0, 5), 10).float()


def test_a_network_with_one_behaviour_alone_gives_no_pairs() -> None:
    images, labels = torch.zeros(40, 1, 28, 28), torch.arange(40) % 10
    with pytest.raises(RuntimeError, match="got 0 held-out images that are right when clean and"):
        recipes.choose(
            "trojan-twice", Obedient(), images, labels, RECIPE, torch.Generator().manual_seed(0)
        )


def test_the_cross_is_no_checkerboard() -> None:
    assert cross().tolist() == [[[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]]
