"""What test_distributed.py has several processes do; run by torchrun, as a user's script would be.

``torchrun --standalone --nproc-per-node 2 -m tests.engine.ranks FOLDER``: reads
``FOLDER/stage.safetensors``, makes every call of `CALLS` with ``distributed=True``, and leaves what
each rank got in ``FOLDER/CALL.RANK.safetensors``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find import candidates, ranking
from rectify_widgets.engine.find import proposals as layerwise
from rectify_widgets.engine.find.localization import localize
from rectify_widgets.engine.measure import judge as judging
from rectify_widgets.engine.measure.metrics import evaluate
from tests.engine.toy import CLASSES, network, samples, stamped

ALL = 10**9
FEW: dict[str, Any] = {"layers": ["block1.conv2", "block2.conv1", "head"], "steps": 2, "trials": 4}
"""Options of `localize` that keep it short."""


@dataclass(frozen=True)
class Stage:
    """What all calls are made with."""

    model: nn.Module
    pairs: SamplePairs
    reference: Tensor
    rank: int = 0


Found = dict[str, Tensor]
Call = Callable[[Stage, bool], Found]


def stage_of(folder: Path, rank: int = 0) -> Stage:
    """The stage that `killed.put_down` has left there."""
    stage = load_file(folder / "stage.safetensors")
    model = network()
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in stage.items() if k.startswith("model.")}
    )
    pairs = SamplePairs(stage["corrupted"][:1], stage["clean"][:1])
    return Stage(model, pairs, stage["reference"], rank)


def collected(stage: Stage, reference: Any, **options: Any) -> Found:
    """Sums, positions and references of `KeyStatistics.collect`."""
    found = KeyStatistics.collect(stage.model, reference, **options)
    counts = {f"{name} count": torch.tensor(part.positions) for name, part in found.items()}
    sums = {name: part.total for name, part in found.items()}
    return {**sums, **counts, "references": torch.tensor(found.references)}


def located(stage: Stage, reference: Any, **options: Any) -> Found:
    """Scores, choices, edits and completeness of `localize`."""
    found = localize(stage.model, stage.pairs, reference=reference, **{**FEW, **options})
    chosen = {f"{n} {kind}": torch.tensor(ridge) for n, (kind, ridge) in found.choices.items()}
    scores = {f"{name} score": torch.tensor(score) for name, score in found.scores.items()}
    rest = {f"{name} error": torch.tensor(e) for name, e in found.completeness.items()}
    order = torch.tensor([list(found.order).index(name) for name in found.scores])
    edits = {f"{name} edit": edit.delta for name, edit in found.edits.items()}
    return {**scores, **chosen, **edits, **rest, "order": order}


def evaluated(stage: Stage, clean: Any, corrupted: Any, **options: Any) -> Found:
    """Figures and intervals of `evaluate`."""
    report = evaluate(stage.model, clean, corrupted, target=0, confidence=0.9, **options)
    reported = {name: torch.tensor(value) for name, value in report.figures().items()}
    bounds = {f"{name} bounds": torch.tensor(pair) for name, pair in report.intervals.items()}
    return {**reported, **bounds, "samples": torch.tensor(report.samples)}


def odd() -> tuple[Tensor, Tensor]:
    """A test set that two processes cannot halve, and of which a third has a wrong label."""
    x, y = samples(77, seed=9)
    return x, torch.where(torch.arange(77) % 3 == 0, (y + 1) % CLASSES, y)


def sampled(data: Dataset[Any], *, distribute: bool) -> DataLoader[Any]:
    """A loader as training on several processes has it: 77 samples are made 78."""
    if not distribute:
        return DataLoader(data, batch_size=4)
    sampler: DistributedSampler[Any] = DistributedSampler(data, shuffle=True)
    return DataLoader(data, batch_size=4, sampler=sampler)


def corrupted() -> tuple[Tensor, Tensor]:
    """Some with the patch and some without, in an order that tells them apart."""
    x, y = odd()
    return torch.where((torch.arange(77) % 5 < 2)[:, None, None, None], stamped(x), x), y


CALLS: dict[str, Call] = {
    "collect": lambda stage, d: collected(stage, stage.reference[:101], batch_size=10, distributed=d),
    "collect a sample": lambda stage, d: collected(
        stage, stage.reference[:45], batch_size=10, positions=5, seed=3, distributed=d
    ),
    "collect from a shuffled loader": lambda stage, d: collected(
        stage, DataLoader(TensorDataset(stage.reference), batch_size=9, shuffle=True),
        positions=ALL, distributed=d,
    ),
    "collect pixels from a distributed loader": lambda stage, d: collected(
        stage, sampled(TensorDataset(odd()[0]), distribute=d), layers=["block2.conv1"],
        key_space="channel", positions=ALL, distributed=d,
    ),
    "collect pixels from one": lambda stage, d: collected(
        stage, stage.reference[:1], key_space="channel", distributed=d
    ),
    "collect from one": lambda stage, d: collected(stage, stage.reference[:1], distributed=d),
    "localize": lambda stage, d: located(
        stage, stage.reference[:101], layers=None, distributed=d
    ),
    "localize without trials": lambda stage, d: located(
        stage, stage.reference[:33], trials=0, distributed=d
    ),
    "localize from a loader": lambda stage, d: located(
        stage, sampled(TensorDataset(odd()[0]), distribute=d), distributed=d
    ),
    "localize by trial": lambda stage, d: located(
        stage, stage.reference[:21], method="trial", distributed=d
    ),
    "localize by projection": lambda stage, d: located(
        stage, stage.reference[:21], method="projection", distributed=d
    ),
    "localize from one": lambda stage, d: located(
        stage, stage.reference[:1], trials=0, distributed=d
    ),
    "localize with statistics": lambda stage, d: located(
        stage, stage.reference[:21], distributed=d,
        statistics=KeyStatistics.collect(stage.model, stage.reference),
    ),
    "evaluate": lambda stage, d: evaluated(stage, odd(), corrupted(), batch_size=4, distributed=d),
    "evaluate a data set": lambda stage, d: evaluated(
        stage, TensorDataset(*odd()), TensorDataset(*corrupted()), batch_size=4, distributed=d
    ),
    "evaluate a distributed loader": lambda stage, d: evaluated(
        stage, sampled(TensorDataset(*odd()), distribute=d), corrupted(), distributed=d
    ),
    "evaluate one": lambda stage, d: evaluated(
        stage, tuple(t[1:2] for t in odd()), corrupted(), distributed=d
    ),
}  # fmt: skip
"""Calls whose result is to be that of one process; True for ``distributed``."""


class Failing(Dataset[Any]):
    """A data set of which one rank cannot read some."""

    def __init__(self, x: Tensor, fails: bool) -> None:
        self.x, self.fails = x, fails

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.fails and index > 20:
            raise OSError("the disk is gone")
        return self.x[index], 0


def failing(stage: Stage) -> Dataset[Any]:
    return Failing(stage.reference, fails=stage.rank == 1)


def other(stage: Stage) -> nn.Module:
    """A model that is another on the second rank."""
    with torch.no_grad():
        stage.model.get_parameter("stem.weight").mul_(1 + stage.rank)
    return stage.model


def hollow(stage: Stage) -> nn.Module:
    """A model whose weights hold no data on the second rank."""
    return stage.model.to("meta") if stage.rank == 1 else stage.model


def stopping(stage: Stage, message: str) -> dict[str, Any]:
    """Hooks that cancel on the second rank, once it is reported something that begins so."""
    reported: list[str] = []
    return {
        "progress": lambda _, text: reported.append(text),
        "cancel": lambda: stage.rank == 1 and any(text.startswith(message) for text in reported),
    }


FAILURES: dict[str, Callable[[Stage], Any]] = {
    "collect fails": lambda s: collected(s, failing(s), batch_size=5, distributed=True),
    "collect with other weights": lambda s: KeyStatistics.collect(
        other(s), s.reference, distributed=True
    ),
    "collect a model without data": lambda s: KeyStatistics.collect(
        hollow(s), s.reference, distributed=True
    ),
    "localize a model without data": lambda s: localize(
        hollow(s), s.pairs, reference=s.reference, distributed=True
    ),
    "localize fails": lambda s: located(s, failing(s), distributed=True),
    "localize is cancelled": lambda s: located(
        s, s.reference, distributed=True, **stopping(s, "trying")
    ),
    "sweep is cancelled": lambda s: located(
        s, s.reference, distributed=True, **stopping(s, "following")
    ),
    "evaluate fails": lambda s: evaluate(s.model, failing(s), batch_size=5, distributed=True),
    "evaluate is cancelled": lambda s: evaluate(
        s.model, odd(), batch_size=4, distributed=True, **stopping(s, "evaluating")
    ),
}
"""Calls that fail on the second rank, or on both; what each rank raises is left behind."""


def seen_by(stage: Stage) -> dict[str, int]:
    """How many inputs of each kind of work this rank has itself in one `localize`."""
    counts = {"swept": 0, "judged": 0}

    def observed(model: nn.Module, layers: Any, probe: Any, **options: Any) -> Any:
        counts["swept"] += len(probe)
        return candidates.sweep_probe(model, layers, probe, **options)

    def judged(model: nn.Module, references: Tensor, *rest: Any, **options: Any) -> Any:
        counts["judged"] += len(references)
        return judging.Judge(model, references, *rest, **options)

    with (
        patch.object(layerwise, "sweep_probe", observed),
        patch.object(ranking, "Judge", judged),
    ):
        located(stage, stage.reference[:101], distributed=True)
    return counts


def what_is_raised(fail: Callable[[Stage], Any], stage: Stage) -> str:
    """Kind and message of the error."""
    try:
        fail(stage)
    except (OSError, ValueError, RuntimeError, Cancelled) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(folder: Path) -> None:
    """Make every call, and leave the results."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=300))
    rank = distributed.get_rank()
    torch.manual_seed(rank)  # as in training, ranks draw different random numbers
    for name, call in CALLS.items():
        found = call(stage_of(folder, rank), True)
        save_file(found, folder / f"{name}.{rank}.safetensors")
    raised = {name: what_is_raised(fail, stage_of(folder, rank)) for name, fail in FAILURES.items()}
    seen = json.dumps(seen_by(stage_of(folder, rank)))
    (folder / f"seen.{rank}.json").write_text(seen, encoding="utf-8")
    (folder / f"raised.{rank}.json").write_text(json.dumps(raised), encoding="utf-8")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
