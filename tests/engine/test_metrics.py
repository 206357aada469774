"""The test-set figures against a recount in numpy, and their intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.engine.measure.intervals import interval
from rectify_widgets.engine.measure.metrics import Report, evaluate, evaluate_predictions
from tests.engine.bad_inputs import Samples
from tests.engine.models import images, make


class Echo(nn.Module):
    """Answers with the scores that its inputs spell out."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1)


def saying(answers: list[int], classes: int = 4) -> Tensor:
    """Inputs that `Echo` answers with these classes."""
    return 10.0 * nn.functional.one_hot(torch.tensor(answers), classes)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 3), st.integers(0, 1000))
def test_figures_are_those_of_a_recount(count: int, many: int, target: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    answers, labels = rng.integers(0, 4, count), rng.integers(0, 4, count)
    wrong, truth = rng.integers(0, 4, many), rng.integers(0, 4, many)
    truth[0] = (target + 1) % 4
    report = evaluate(
        Echo(),
        (saying(answers.tolist()), torch.tensor(labels)),
        (saying(wrong.tolist()), torch.tensor(truth)),
        target,
        batch_size=7,
    )
    assert report.overall_accuracy == pytest.approx(np.mean(answers == labels))
    assert report.corrupted_accuracy == pytest.approx(np.mean(wrong == truth))
    assert report.attack_success_rate == pytest.approx(np.mean(wrong[truth != target] == target))
    others = answers[labels != target]
    if len(others):
        assert report.clean_target_rate == pytest.approx(np.mean(others == target))
    else:
        assert report.clean_target_rate is None
    assert report.samples == (count, many)


def test_predicted_classes_give_the_same_report() -> None:
    answers, labels, wrong, truth = torch.randint(0, 4, (4, 50), generator=torch.manual_seed(0))
    options: dict[str, Any] = {"target": 2, "confidence": 0.9, "seed": 3}
    reported = evaluate_predictions((answers, labels), (wrong, truth), **options)
    clean, corrupted = saying(answers.tolist()), saying(wrong.tolist())
    assert reported == evaluate(Echo(), (clean, labels), (corrupted, truth), **options)
    with pytest.raises(ValueError, match=r"clean\[1\]: got shape"):
        evaluate_predictions((answers, labels[:9]))
    with pytest.raises(ValueError, match="want at least one"):
        evaluate_predictions((answers[:0], labels[:0]))
    with pytest.raises(TypeError, match="target"):
        evaluate_predictions((answers, labels), target="cat")  # type: ignore[arg-type]


def test_the_target_class_itself_does_not_count_as_a_success() -> None:
    """Nine inputs of the target class, all predicted as it, and one of four others."""
    clean = (saying([0, 1, 2]), torch.tensor([0, 1, 2]))
    corrupted = (saying([0] * 9 + [0, 1, 2, 3]), torch.tensor([0] * 9 + [1, 1, 2, 3]))
    report = evaluate(Echo(), clean, corrupted, target=0)
    assert report.attack_success_rate == 0.25
    assert report.corrupted_accuracy == pytest.approx(12 / 13)
    assert report.clean_target_rate == 0.0


def test_what_is_not_given_is_not_measured() -> None:
    clean = (saying([0, 1, 2, 2]), torch.tensor([0, 1, 2, 3]))
    report = evaluate(Echo(), clean)
    assert report == Report(overall_accuracy=0.75, samples=(4, 0))
    assert list(report.figures()) == ["overall_accuracy"]
    with_target = evaluate(Echo(), clean, target=2)
    assert with_target.attack_success_rate is None
    assert with_target.clean_target_rate == pytest.approx(1 / 3)
    assert evaluate(Echo(), clean, clean).corrupted_accuracy == 0.75
    assert evaluate(Echo(), clean, clean).attack_success_rate is None
    with pytest.raises(ValueError, match="all its labels are the target 1"):
        evaluate(Echo(), clean, (saying([1, 1]), torch.tensor([1, 1])), target=1)


def test_clean_inputs_of_the_target_class_only() -> None:
    clean = (saying([2, 2, 1]), torch.tensor([2, 2, 2]))
    report = evaluate(Echo(), clean, target=2, confidence=0.9)
    assert report.overall_accuracy == pytest.approx(2 / 3)
    assert report.clean_target_rate is None
    assert list(report.intervals) == ["overall_accuracy"]


def test_intervals() -> None:
    clean = (saying([0] * 320 + [1] * 80), torch.tensor([0] * 400))
    corrupted = (saying([3] * 30 + [0] * 70), torch.tensor([0] * 100))
    report = evaluate(Echo(), clean, corrupted, target=3, confidence=0.95)
    assert set(report.intervals) == set(report.figures())
    for name, value in report.figures().items():
        low, high = report.intervals[name]
        assert low <= value <= high
    low, high = report.intervals["overall_accuracy"]
    # The normal approximation: 0.8 ± 1.96 √(0.8 · 0.2 / 400).
    assert low == pytest.approx(0.8 - 0.0392, abs=0.004)
    assert high == pytest.approx(0.8 + 0.0392, abs=0.004)
    narrow = evaluate(Echo(), clean, corrupted, target=3, confidence=0.5)
    assert narrow.intervals["overall_accuracy"][0] > low
    assert not evaluate(Echo(), clean).intervals


def test_intervals_where_all_samples_agree() -> None:
    ones = torch.ones(8).double()
    # Of 8 right ones of 8: 8 / (8 + 1.96²), as the textbook has it.
    low, high = interval(ones, confidence=0.95, seed=0)
    assert low == pytest.approx(8 / (8 + 1.959964**2), abs=1e-6)
    assert high == 1


def test_intervals_of_inputs_with_several_labels() -> None:
    shares = torch.rand(200, generator=torch.Generator().manual_seed(0)).double()
    low, high = interval(shares, confidence=0.95, seed=0)
    reach = 1.96 * float(shares.std()) / 200**0.5
    assert low == pytest.approx(float(shares.mean()) - reach, abs=0.006)
    assert high == pytest.approx(float(shares.mean()) + reach, abs=0.006)
    assert interval(shares, confidence=0.95, seed=0) == (low, high)
    assert interval(shares, confidence=0.95, seed=1) != (low, high)
    ones = torch.full((10,), 0.5).double()
    assert interval(ones, confidence=0.9, seed=0) == (0.5, 0.5)


def test_table_in_per_cent() -> None:
    clean = (saying([0, 1, 2, 2]), torch.tensor([0, 1, 2, 3]))
    report = evaluate(Echo(), clean, clean, target=2, confidence=0.9)
    lines = str(report).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("overall accuracy      75.00 %  [")
    assert "attack success rate" in lines[1]
    html = report._repr_html_()
    assert html.startswith("<table>")
    assert html.count("<tr>") == 4
    assert "75.00 %" in html


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_model_is_evaluated_and_left_as_it_was(dtype: torch.dtype) -> None:
    model = make("residual").to(dtype).train()
    flags = [part.training for part in model.modules()]
    with torch.no_grad():
        answers = make("residual").to(dtype)(images(6).to(dtype)).argmax(dim=1)
    state = torch.get_rng_state()
    # In training mode dropout and batch statistics would change answers, and each time anew.
    report = evaluate(model, (images(6), answers), confidence=0.9)
    assert report.overall_accuracy == 1.0
    assert [part.training for part in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)


# --- test sets that are streamed -----------------------------------------------------------------


class Pairs(IterableDataset[Any]):
    """Inputs and labels one after another; nobody knows how many."""

    def __init__(self, x: Tensor, y: Tensor, names: tuple[str, str] | None = None) -> None:
        self.x, self.y, self.names = x, y, names

    def __iter__(self) -> Iterator[Any]:
        for x, y in zip(self.x, self.y.tolist(), strict=True):
            yield (x, y) if self.names is None else dict(zip(self.names, (x, y), strict=True))


def torch_lists(samples: list[tuple[Tensor, Tensor]]) -> list[Any]:
    """A batch as some loaders make it: labels in a plain list."""
    return [torch.stack([x for x, _ in samples]), [int(y) for _, y in samples]]


def sets(x: Tensor, y: Tensor) -> dict[str, Any]:
    data = TensorDataset(x, y)
    return {
        "data set": data,
        "stream": Pairs(x, y),
        "stream of dicts": Pairs(x, y, ("pixel_values", "label")),
        "loader": DataLoader(data, batch_size=7),
        "loader of a stream": DataLoader(Pairs(x, y), batch_size=5),
        "loader of dicts": DataLoader(Pairs(x, y, ("image", "labels")), batch_size=4),
        "loader without batches": DataLoader(
            TensorDataset(x[:, None], y[:, None]), batch_size=None
        ),
        "loader of lists": DataLoader(TensorDataset(x, y), batch_size=3, collate_fn=torch_lists),
    }


@pytest.mark.parametrize("kind", sets(torch.empty(1), torch.empty(1)))
def test_streams_give_the_report_of_tensors(kind: str) -> None:
    answers, labels, wrong, truth = torch.randint(0, 4, (4, 23), generator=torch.manual_seed(0))
    clean, corrupted = (saying(answers.tolist()), labels), (saying(wrong.tolist()), truth)
    options: dict[str, Any] = {"target": 2, "confidence": 0.9, "batch_size": 6}
    wanted = evaluate(Echo(), clean, corrupted, **options)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    reported: list[float] = []
    found = evaluate(
        Echo(), sets(*clean)[kind], sets(*corrupted)[kind], **options,
        progress=lambda at, _: reported.append(at),
    )  # fmt: skip
    assert found == wanted
    assert torch.equal(torch.get_rng_state(), state)
    assert reported == sorted(reported)
    assert (reported[0], reported[-1]) == (0.0, 1.0)
    assert len(reported) > 7
    if "stream" not in kind and "dicts" not in kind:  # how many there are is known
        assert len(set(reported)) == len(reported)


def test_a_shuffled_loader_is_paired_with_its_own_labels() -> None:
    answers, labels = torch.randint(0, 4, (2, 50), generator=torch.manual_seed(0))
    data = TensorDataset(saying(answers.tolist()), labels)
    loader = DataLoader(data, batch_size=8, shuffle=True)
    assert evaluate(Echo(), loader) == evaluate(Echo(), (saying(answers.tolist()), labels))


def test_cancelled_between_batches() -> None:
    x, y = images(20), torch.zeros(20, dtype=torch.long)
    asked = 0

    def cancel() -> bool:
        nonlocal asked
        asked += 1
        return asked > 4

    with pytest.raises(Cancelled):
        evaluate(make("residual"), TensorDataset(x, y), batch_size=2, cancel=cancel)
    assert asked == 5
    # A loader's batch is cut into smaller ones, and asked between them too.
    asked = 0
    with pytest.raises(Cancelled):
        evaluate(make("residual"), DataLoader(TensorDataset(x, y), 20), batch_size=2, cancel=cancel)


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([], ValueError, "clean: got no samples"),
        ([torch.ones(4)], TypeError, "clean: got a sample of type Tensor without a class number"),
        ([(torch.ones(4), "cat")], TypeError, "without a class number"),
        ([(torch.ones(4), 0.5)], TypeError, "clean: its labels: got dtype torch.float32"),
        ([(torch.ones(4), 7)], ValueError, "clean: its labels: got class numbers from 7 to 7"),
        ([(torch.ones(4), 0), (torch.ones(5), 0)], ValueError, "samples of different shapes"),
        ([(torch.tensor([torch.nan, 1.0, 1.0, 1.0]), 0)], ValueError, "clean: got NaN"),
        ([(torch.ones(4), [1, 0])], ValueError, r"clean: its labels: got shape \(1, 2\)"),
    ],
)
def test_bad_samples_are_named(samples: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate(Echo(), Samples(samples))
