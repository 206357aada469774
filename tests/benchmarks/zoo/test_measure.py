"""The table of the zoo: what is called, kept, counted and written down."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from tests.benchmarks.zoo import measure
from tests.benchmarks.zoo.measure import ZooRun, measure_zoo, plan_zoo

FIGURES = {
    "overall_accuracy": 0.9, "attack_success_rate": 0.99, "corrupted_accuracy": 0.1,
    "clean_target_rate": 0.02,
}  # fmt: skip
AFTER = {
    **FIGURES,
    "overall_accuracy": 0.89,
    "attack_success_rate": 0.06,
    "corrupted_accuracy": 0.8,
}


def white(inputs: torch.Tensor) -> torch.Tensor:
    """An attack: the first value becomes 1."""
    marked = inputs.clone()
    marked[..., 0, 0] = 1.0
    return marked


class FakeCase:
    """A case whose figures are known."""

    def __init__(self) -> None:
        clean = torch.zeros(12, 1, 4, 4)
        self.model, self.reference, self.validation = nn.Flatten(), clean, None
        self.pairs = SamplePairs(white(clean), clean, torch.arange(12) % 3)
        self.triggers = {"badnets": white}

    def figures(self, model: nn.Module | None = None) -> dict[str, float]:
        """Before, or after a repair."""
        return FIGURES if model is None else AFTER


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[SamplePairs, dict[str, Any]]]:
    """Every call of `rectify`, none of which does anything; one network cannot be trained."""
    made: list[tuple[SamplePairs, dict[str, Any]]] = []
    evidence = SimpleNamespace(corruption="ToneCurve(0.15 to 1.00, 1 channel)", transferred=False)

    def rectify(model: nn.Module, pairs: SamplePairs, **options: Any) -> SimpleNamespace:
        made.append((pairs, options))
        edits = [SimpleNamespace(layer="stem"), SimpleNamespace(layer="stem")]
        return SimpleNamespace(
            model=model, edits=edits, evidence=evidence, stopped="layers refined"
        )

    def train(network: str, attack: str, *_: Any, **__: Any) -> FakeCase:
        if attack == "wanet":
            raise RuntimeError("the network did not learn the attack")
        return FakeCase()

    monkeypatch.setattr(measure, "rectify", rectify)
    monkeypatch.setattr(measure, "train_zoo", train)
    measure._case.cache_clear()
    return made


def options(folder: Path, **changed: Any) -> Namespace:
    """What the command line gives."""
    given = {
        "data": Path("data"), "cache": None, "out": folder, "methods": ["dynamic"], "seeds": 2,
        "networks": ["residual"], "attacks": ["badnets", "wanet"], "shown": None, "colour": False,
        "network_seed": 0,
    }  # fmt: skip
    return Namespace(**{**given, **changed})


def test_our_own_method_and_the_residual_network_come_first(tmp_path: Path) -> None:
    runs = plan_zoo(options(tmp_path, methods=None, networks=None, attacks=None))
    assert len(set(runs)) == len(runs) == 8 * 3 * 3 * 2 * 11
    assert {run.method for run in runs[: len(runs) // 8]} == {"dynamic"}
    assert runs[0] == ZooRun(
        "residual", runs[0].attack, colour=False, method="dynamic", shown="1", seed=0
    )
    with pytest.raises(ValueError, match=r"^attacks: got 'wane'"):
        plan_zoo(options(tmp_path, attacks=["wane"]))


def test_the_function_is_given_and_a_killed_run_goes_on(
    tmp_path: Path, calls: list[tuple[SamplePairs, dict[str, Any]]]
) -> None:
    table = measure_zoo(options(tmp_path), Monitor())[0]
    assert [len(pairs) for pairs, _ in calls] == [1, 1, 10, 10, 1, 1]
    assert [pairs.corrupt is white for pairs, _ in calls] == [False] * 4 + [True] * 2
    assert [given["seed"] for _, given in calls] == [0, 1] * 3
    assert "wanet (RuntimeError: the network did not learn the attack)" in table.note
    measure_zoo(options(tmp_path), Monitor())
    assert len(calls) == 6, "what is measured is not measured again"
    measure_zoo(options(tmp_path, network_seed=1), Monitor())
    assert len(calls) == 12, "another network is measured"


def test_distances_to_the_targets(
    tmp_path: Path, calls: list[tuple[SamplePairs, dict[str, Any]]]
) -> None:
    del calls
    rows = {str(row["given"]): row for row in measure_zoo(options(tmp_path), Monitor())[0].rows}
    assert rows["1"]["missed by"] == "ASR over floor 1.0, OA lost 0.3, right under OA 1.0"
    assert rows["10"]["missed by"] == "ASR over floor 2.5, OA lost 0.5, right under OA 4.0"
    assert rows["1"]["ASR"] == "6.0 ± 0.0"
    assert rows["1"]["corruption"] == "ToneCurve(0.15 to 1.00, 1 channel): pairs alone"
    assert rows["1"]["seeds"] == 2
