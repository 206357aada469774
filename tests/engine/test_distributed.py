"""Two processes under torchrun get what one gets, share by share; and fail together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import rectify_widgets as rw
from rectify_widgets.engine.base.ranks import ALONE, Ranks
from tests.engine.killed import put_down
from tests.engine.ranks import CALLS, FAILURES, Found, stage_of
from tests.engine.toy import Toy, samples

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(trojan: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left behind."""
    place = tmp_path_factory.mktemp("ranks")
    put_down(place, trojan.model, trojan.pairs, trojan.reference)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "tests.engine.ranks", str(place)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return place


def same(one: Found, other: Found, *, rtol: float, atol: float) -> None:
    assert sorted(one) == sorted(other)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("call", CALLS)
def test_ranks_get_what_one_process_gets(folder: Path, call: str) -> None:
    found = [load_file(folder / f"{call}.{rank}.safetensors") for rank in range(2)]
    same(found[0], found[1], rtol=0.0, atol=0.0)
    torch.manual_seed(0)
    alone = CALLS[call](stage_of(folder), False)
    same(found[0], alone, rtol=2e-4, atol=2e-5)


def test_each_rank_has_its_share_of_the_work(folder: Path) -> None:
    seen = [json.loads((folder / f"seen.{rank}.json").read_text("utf-8")) for rank in range(2)]
    assert seen == [{"swept": 16, "judged": 51}, {"swept": 16, "judged": 50}]


RAISED = {
    "collect fails": (
        "RuntimeError: distributed: another rank failed",
        "OSError: the disk is gone",
    ),
    "collect with other weights": ("ValueError: model: its weights differ from rank to rank",) * 2,
    **dict.fromkeys(
        ("collect a model without data", "localize a model without data"),
        ("RuntimeError: distributed: another rank failed", "ValueError: model: its weights are on"),
    ),
    "localize fails": (
        "RuntimeError: distributed: another rank failed",
        "OSError: the disk is gone",
    ),
    "localize is cancelled": ("Cancelled: cancelled on another rank", "Cancelled: cancelled"),
    "sweep is cancelled": ("Cancelled: cancelled on another rank", "Cancelled: cancelled"),
    "evaluate fails": (
        "RuntimeError: distributed: another rank failed",
        "OSError: the disk is gone",
    ),
    "evaluate is cancelled": ("Cancelled: cancelled on another rank", "Cancelled: cancelled"),
}


@pytest.mark.parametrize("call", FAILURES)
def test_what_fails_on_one_rank_fails_on_all(folder: Path, call: str) -> None:
    """And the next call finds all of them together again: see the order in `ranks.main`."""
    for rank, message in enumerate(RAISED[call]):
        raised = json.loads((folder / f"raised.{rank}.json").read_text(encoding="utf-8"))
        assert raised[call].startswith(message)


# --- without others ------------------------------------------------------------------------------


def test_it_has_to_be_asked_for_and_begun(trojan: Toy) -> None:
    x, y = samples(10, seed=1)
    calls: list[Any] = [
        lambda value: rw.KeyStatistics.collect(trojan.model, x, distributed=value),
        lambda value: rw.localize(trojan.model, trojan.pairs, reference=x, distributed=value),
        lambda value: rw.evaluate(trojan.model, (x, y), distributed=value),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"distributed: got True .* torchrun"):
            call(True)
        with pytest.raises(TypeError, match="distributed: got 'gloo', want True or False"):
            call("gloo")


def test_alone_nothing_is_exchanged() -> None:
    x = torch.rand(5, 2)
    assert ALONE.sum(x) is x
    assert ALONE.mean(x, 3) is x
    assert ALONE.gather(x) is x
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]
    assert ALONE.rows(4) == (slice(0, 4, 1), 4)
    ALONE.check_same("model", "00ff", "weights")
    with pytest.raises(KeyError), ALONE.together():
        raise KeyError


def test_every_row_has_one_rank() -> None:
    for count in (1, 5, 9):
        seen: list[Tensor] = []
        for rank in range(4):
            rows, own = Ranks(rank, 4).rows(count)
            part = torch.arange(count)[rows]
            assert len(part) == max(own, 1)
            seen.append(part[:own])
        assert torch.equal(torch.cat(seen).sort().values, torch.arange(count))
