"""Gap, disturbance and degradation against a recount in numpy; what progress hooks promise."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Cancelled, Monitor
from rectify_widgets.engine.measure.judge import CLASS_FACTOR, CLASS_SIZE, WEIGHT, Judge, Verdict
from rectify_widgets.engine.model import running


class Scores(nn.Module):
    """Answers sample ``i`` with row ``i`` of a table; samples carry their number."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table, requires_grad=False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.table[x.flatten(1)[:, 0].long()]


def numbered(start: int, stop: int) -> Tensor:
    return torch.arange(start, stop).float().reshape(-1, 1)


def softmax(scores: Tensor) -> np.ndarray:
    powers = np.exp(scores.double().numpy())
    rows: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return rows


def tables(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores of the original and of an edited model: references first, then carriers."""
    generator = torch.Generator().manual_seed(seed)
    original = 2 * torch.randn(2 * count, 3, generator=generator)
    return original, original + torch.randn(2 * count, 3, generator=generator)


@pytest.mark.parametrize("seed", range(4))
def test_all_figures(seed: int) -> None:
    count = 60
    before, after = tables(count, seed)
    references = numbered(0, count)
    judge = Judge(Scores(before), references, numbered(count, 2 * count), references)
    original, now = softmax(before), softmax(after)
    clean = original[:count]

    start = judge.measure(Scores(before))
    assert start.gap == pytest.approx(np.abs(original[count:] - clean).sum(axis=1).mean() / 2)
    assert (start.disturbance, start.degradation, start.worst_class) == (0.0, 0.0, 0.0)

    found = judge.measure(Scores(after))
    assert found.gap == pytest.approx(np.abs(now[count:] - clean).sum(axis=1).mean() / 2)
    assert found.disturbance == pytest.approx(np.abs(now[:count] - clean).sum(axis=1).mean() / 2)
    answers, flipped = clean.argmax(axis=1), now[:count].argmax(axis=1)
    rows = np.arange(count)
    losses = clean[rows, answers] - clean[rows, flipped]
    assert losses.sum() > 0
    assert found.degradation == pytest.approx(losses.mean())
    worst = {}
    for number in range(3):
        members = losses[answers == number]
        if len(members) >= CLASS_SIZE:
            worst[number] = (members.sum() - members.max()) / len(members)
    assert found.worst_class == pytest.approx(max(worst.values()))
    assert found.sufferer == max(worst, key=lambda number: worst[number])
    assert found.objective == pytest.approx(found.gap + WEIGHT * found.disturbance)

    assert judge.measure_below(Scores(after), found.gap + 1e-6) == found
    assert judge.measure_below(Scores(after), found.gap - 1e-6) is None


def test_what_is_known_of_the_original_is_not_measured_again() -> None:
    before, after = tables(20, 7)
    references, carriers = numbered(0, 20), numbered(20, 40)
    plain = Judge(Scores(before), references, carriers, references)
    known = Judge(
        Silent(), references, carriers, references, scores=(before[:20], before[:20])
    )  # fmt: skip
    assert known.original(before[20:]) == plain.measure(Scores(before))
    assert known.measure(Scores(after)) == plain.measure(Scores(after))
    assert known.inputs == 40


class Silent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the original was run")


def test_a_trial_ends_where_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of four, as soon as what is left to come could not save it."""
    monkeypatch.setattr(running, "MOST", 4)
    before, after = tables(40, 3)
    references, carriers = numbered(0, 40), numbered(40, 80)
    judge = Judge(Scores(before), references, carriers, references)
    whole = judge.measure(Scores(after))
    calls = 20

    def spent(bar: float = 1.0, most: float = np.inf) -> tuple[Verdict | None, int]:
        model = Scores(after)
        return judge.measure_below(model, bar, most=most), model.calls

    assert spent() == (whole, calls)
    assert spent(most=whole.objective + 1e-6) == (whole, calls)
    found, few = spent(bar=0.4 * whole.gap)
    assert found is None
    assert few == 1 + int((partial(before, after, 40) < 0.4 * whole.gap).sum())
    most = whole.gap + 0.3 * WEIGHT * whole.disturbance
    found, some = spent(most=most)
    assert found is not None
    assert not found.finished
    assert some == 10 + 1 + int((partial(before, after, 0) < 0.3 * whole.disturbance).sum())
    assert found.gap == whole.gap
    assert most <= found.objective < whole.objective
    assert np.isnan([found.degradation, found.worst_class]).all()
    assert not found.within(1.0)


def partial(before: Tensor, after: Tensor, first: int) -> np.ndarray:
    """What each further batch of four brings the mean distance from the clean ones to."""
    apart = np.abs(softmax(after)[first : first + 40] - softmax(before)[:40]).sum(axis=1) / 2
    running_sum: np.ndarray = apart.cumsum()[3::4] / 40
    return running_sum


def test_corrupted_inputs_that_are_no_references() -> None:
    """Where pairs alone show the behaviour, its gap is measured on them, and the rest is not."""
    before, after = tables(30, 5)
    references, carriers, origins = numbered(0, 40), numbered(40, 50), numbered(50, 60)
    found = Judge(Scores(before), references, carriers, origins).measure(Scores(after))
    original, now = softmax(before), softmax(after)
    gaps = np.abs(now[40:50] - original[50:60]).sum(axis=1) / 2
    assert found.gap == pytest.approx(gaps.mean())
    changes = np.abs(now[:40] - original[:40]).sum(axis=1) / 2
    assert found.disturbance == pytest.approx(changes.mean())
    same = Judge(Scores(before), references, references, references).measure(Scores(after))
    assert (same.degradation, same.worst_class) == (found.degradation, found.worst_class)


def test_validation_counts_accuracy() -> None:
    """Forty labelled samples of two classes; the edit loses four of one class."""
    labels = torch.tensor([0] * 20 + [1] * 20)
    before = nn.functional.one_hot(labels, 2).float()
    before[3] = before[3].flip(0)  # an error from the start
    after = before.clone()
    after[20:24] = after[20:24].flip(1)
    after[3] = after[3].flip(0)  # and one that the edit repairs
    inputs = numbered(0, 40)
    judge = Judge(Scores(before), inputs[:5], inputs[5:10], inputs[:5], (inputs, labels))
    assert judge.measure(Scores(before)).degradation == 0.0
    found = judge.measure(Scores(after))
    assert found.degradation == pytest.approx(3 / 40)
    assert found.worst_class == pytest.approx(3 / 20)  # of four, one is set aside
    assert found.sufferer == 1


@pytest.mark.parametrize("size", [20, 28, 60])
def test_a_flip_costs_what_shifted_images_say(size: int) -> None:
    """From 28 pixels on they are shifted by one, from 56 on by two, to each of four sides."""
    draw = torch.Generator().manual_seed(size)
    images = torch.rand(30, 2, size, size, generator=draw)
    before, after = (Linear(2 * size * size, draw) for _ in range(2))
    found = Judge(before, images, images, images, steady=True).measure(after)
    step, plain = size // 28, images.numpy()
    moved = [np.roll(plain, way * step, axis) for axis in (2, 3) for way in (-1, 1)]
    chances = np.mean([softmax(before(torch.from_numpy(one))) for one in (plain, *moved)], axis=0)
    own, now = (model(images).argmax(dim=1).numpy() for model in (before, after))
    rows = np.arange(30)
    costs = chances[rows, own] - chances[rows, now]
    assert found.degradation == pytest.approx(costs.mean(), abs=1e-6)
    alone = Judge(before, images, images, images).measure(after)
    assert (alone.degradation == pytest.approx(found.degradation)) == (step == 0)
    assert (alone.gap, alone.disturbance) == (found.gap, found.disturbance)


class Linear(nn.Module):
    def __init__(self, count: int, draw: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, count, generator=draw), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T / 9


def test_what_is_no_image_is_not_shifted() -> None:
    before, after = tables(40, 2)
    references, carriers = numbered(0, 40), numbered(40, 80)
    model = Scores(before)
    judge = Judge(
        model, references, carriers, references, scores=(before[:40], before[:40]), steady=True
    )
    assert model.calls == 0
    alone = Judge(Scores(before), references, carriers, references)
    assert judge.measure(Scores(after)) == alone.measure(Scores(after))


def test_small_classes_are_not_judged_by_themselves() -> None:
    labels = [0] * 30 + [1] * (CLASS_SIZE - 1)
    before = 9 * nn.functional.one_hot(torch.tensor(labels), 2).float()
    after = before.clone()
    after[30:] = after[30:].flip(1)
    inputs = numbered(0, len(labels))
    found = Judge(Scores(before), inputs, inputs, inputs).measure(Scores(after))
    assert (found.worst_class, found.sufferer) == (0.0, None)
    assert found.degradation == pytest.approx((CLASS_SIZE - 1) / len(labels), rel=1e-3)


def test_budget() -> None:
    verdict = Verdict(gap=0.1, disturbance=0.0, degradation=0.01, worst_class=0.05)
    assert verdict.within(0.01)
    assert not verdict.within(0.0099)
    assert not Verdict(0.1, 0.0, 0.0, 0.01 * CLASS_FACTOR + 1e-6).within(0.01)
    assert Verdict(0.1, 0.0, -0.02, 0.0).within(0.0)


def test_scores_that_overflow_are_as_bad_as_can_be() -> None:
    before = torch.eye(4)
    judge = Judge(Scores(before), numbered(0, 4), numbered(0, 4), numbered(0, 4))
    broken = judge.measure(Scores(torch.full((4, 4), torch.nan)))
    assert broken.gap == broken.disturbance == 1.0


# --- progress and cancellation -------------------------------------------------------------------


def test_parts_of_a_monitor() -> None:
    reported: list[tuple[float, str]] = []
    monitor = Monitor(lambda at, message: reported.append((at, message)))
    monitor.report(0.0, "start")
    half = monitor.part(0.5, 1.0)
    half.report(0.5, "three quarters")
    half.part(0.5, 1.0).report(0.5, "seven eighths")
    half.report(7.0, "never beyond the end")
    assert reported == [
        (0.0, "start"),
        (0.75, "three quarters"),
        (0.875, "seven eighths"),
        (1.0, "never beyond the end"),
    ]


def test_cancel_is_a_function_or_an_event() -> None:
    event, answers = threading.Event(), [False, True]
    for monitor in (Monitor(cancel=event), Monitor(cancel=lambda: answers.pop(0))):
        monitor.part(0.0, 0.5).report(0.0, "on")
        event.set()
        with pytest.raises(Cancelled):
            monitor.part(0.0, 0.5).check()


def test_a_cancelled_step_is_not_reported() -> None:
    reported: list[float] = []
    with pytest.raises(Cancelled):
        Monitor(lambda at, _: reported.append(at), lambda: True).report(0.5, "half")
    assert not reported
