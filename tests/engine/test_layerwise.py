"""Statistics that are collected when they are asked for, and kept as long as they hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rectify_widgets as rw
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.edit.solver import DenseSolver
from rectify_widgets.engine.edit.statistics import collect
from rectify_widgets.engine.find import proposals as layerwise
from rectify_widgets.engine.find.problem import pose_problem
from rectify_widgets.engine.find.proposals import StatisticsSource
from rectify_widgets.engine.model.running import eval_mode
from tests.engine.models import images, make
from tests.engine.test_editing import patched


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The layers of each pass over the references."""
    seen: list[list[str]] = []

    def counted(model: Any, reference: Any, catalog: Any, chosen: Any, **options: Any) -> Any:
        seen.append(list(chosen))
        return collect(model, reference, catalog, chosen, **options)

    monkeypatch.setattr(layerwise, "collect", counted)
    return seen


def test_only_what_is_stale_is_collected_anew(asked: list[list[str]]) -> None:
    model = make("residual").double()
    with eval_mode(model) as module:
        problem = pose_problem(module, patched(), images(20).double())
        collected = StatisticsSource(problem, None, None, 0)
        first = collected.of(problem.layers, Monitor())
        assert asked == [list(problem.layers)]
        assert collected.of(problem.layers, Monitor()) is first
        assert len(asked) == 1
        some = list(problem.layers)[-2:]
        collected.forget(some)
        again = collected.of(problem.layers, Monitor())
        assert asked[1:] == [some]
        for name in problem.layers:
            assert (again[name] is first[name]) == (name not in some)
            torch.testing.assert_close(again[name].total, first[name].total)


def test_factors_are_kept_while_there_is_room_and_they_hold() -> None:
    model = make("residual").double()
    with eval_mode(model) as module:
        problem = pose_problem(module, patched(), images(20).double())
        known = StatisticsSource(problem, None, None, 0).of(problem.layers, Monitor())
        first, second, third = list(problem.layers)[:3]
        collected = StatisticsSource(problem, None, None, 0, room=100)
        right = torch.rand_like(known[first].total[:, :2])
        wanted = DenseSolver(first, known[first].moment).solve(right, 0.1)
        DenseSolver(first, known[first].moment, collected.factors(first, 60)).solve(right, 0.1)
        again = collected.factors(first, 60)
        assert list(again) == [0.1]
        # Taken as they are: of no other second moment would they be the factors.
        reused = DenseSolver(first, 7 * known[first].moment, again)
        assert torch.equal(reused.solve(right, 0.1), wanted)
        collected.factors(second, 41)[0.1] = right  # 101 bytes
        assert not collected.factors(second, 41)
        collected.factors(third, 40)[0.1] = right
        assert collected.factors(third, 40)
        collected.forget(iter([first, second]))
        collected.factors(first, 60)[0.1] = right  # what was forgotten takes no room
        assert list(collected.factors(first, 60)) == [0.1]
        assert collected.factors(first, 60) is not again
        assert collected.factors(third, 40)


def test_parts_are_not_kept(asked: list[list[str]]) -> None:
    model = make("residual").double()
    with eval_mode(model) as module:
        problem = pose_problem(module, patched(), images(20).double())
        collected = StatisticsSource(problem, None, None, 0)
        name = next(iter(problem.layers))
        for _ in range(2):
            found = collected.of({name: problem.layers[name]}, Monitor())
            assert list(found) == [name]
        assert asked == [[name], [name]]


def test_given_statistics_are_taken_and_checked(asked: list[list[str]]) -> None:
    model = make("residual").double()
    reference = images(20).double()
    known = rw.KeyStatistics.collect(model, reference)
    channels = rw.KeyStatistics.collect(model, reference, key_space="channel")
    asked.clear()
    with eval_mode(model) as module:
        problem = pose_problem(module, patched(), reference)
        assert StatisticsSource(problem, None, known, 0).of(problem.layers, Monitor()) is known
        assert not asked
        with pytest.raises(ValueError, match="want 'patch' keys"):
            StatisticsSource(problem, None, channels, 0)
        with torch.no_grad():
            next(iter(problem.layers.values())).module.weight.mul_(2)
        with pytest.raises(ValueError, match="stale"):
            StatisticsSource(problem, None, known, 0)
