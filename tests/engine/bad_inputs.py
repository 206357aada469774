"""What a bad input to the engine is: the stage on which it is tried, and the list of all cases.

Imports the engine.  `bad` adds a case; the files ``bad_calls``, ``bad_edits`` and ``bad_fits`` do so on import.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

import rectify_widgets as rw
from tests.engine.bad_models import Boom
from tests.engine.traces import Tiny, corrupted, images


class Stage:
    """A small network with all that the engine's calls take; made anew for each case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model: Any = Tiny()
        self.clean = images(2, seed=2)
        self.marked = corrupted(self.clean)
        self.pairs = rw.SamplePairs(self.marked, self.clean)
        self.reference = images(16)
        self.labels = torch.arange(16) % 4
        self.given: Any = None
        """What the case hands in, where it is not made in the call itself."""
        self._made: dict[str, Any] = {}

    def statistics(self, **options: Any) -> rw.KeyStatistics:
        """Statistics of the reference under a sound network."""
        return rw.KeyStatistics.collect(Tiny(), self.reference, **options)

    def edit(self, **options: Any) -> rw.RankOneEdit:
        """An edit of the sound network."""
        options = {"layer": "third", "direction": "key", "ridge": 0.1, **options}
        return rw.solve_edit(Tiny(), self.pairs, reference=self.reference, **options)

    def arguments(self) -> list[object]:
        """Everything that a call could write into."""
        return [self.marked, self.clean, self.pairs.corrupted, self.pairs.clean, self.reference,
                self.labels, self.given]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One bad input and the error that it is to give."""

    function: str
    """The call, as the documentation spells it."""
    name: str
    """What is wrong, for people."""
    argument: str
    """With what the message begins; empty where the user's own exception passes through."""
    error: type[Exception]
    says: str
    """A regular expression that the rest of the message matches."""
    call: Callable[[Stage], object]
    model: Callable[[], object]
    given: Callable[[Stage], object]
    writes: bool
    """Whether the call is meant to write into the model, so that it has to take that back."""

    def __str__(self) -> str:
        return f"{self.function}: {self.name}"

    def stage(self, folder: Path) -> Stage:
        """The stage with this case's model and input."""
        stage = Stage(folder)
        stage.model = self.model()
        stage.given = self.given(stage)
        return stage


CASES: list[Case] = []


def bad(
    function: str,
    name: str,
    argument: str,
    error: type[Exception],
    says: str,
    call: Callable[[Stage], object],
    *,
    model: Callable[[], object] = Tiny,
    given: Callable[[Stage], object] = lambda stage: None,
    writes: bool = False,
) -> None:
    """Add a case."""
    CASES.append(Case(function, name, argument, error, says, call, model, given, writes))


def spoiled(tensor: Tensor, value: float = float("nan")) -> Tensor:
    """A copy in which the last number is not finite."""
    copy = tensor.clone()
    copy.view(-1)[-1] = value
    return copy


class Samples(Dataset[Any]):
    """A data set of whatever it is given."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


class Torn(Samples):
    """A data set that fails at its third sample."""

    def __getitem__(self, index: int) -> Any:
        if index == 2:
            raise Boom("sample 2 cannot be read")
        return super().__getitem__(index)


class Stream(torch.utils.data.IterableDataset[Any]):
    """A data set without a length."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)


def text_file(stage: Stage) -> Path:
    """A file that is not safetensors."""
    path = stage.folder / "notes.txt"
    path.write_text("not a tensor in sight")
    return path


def weights_file(stage: Stage) -> Path:
    """A safetensors file of something else."""
    path = stage.folder / "weights.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    return path


def cut_file(stage: Stage) -> Path:
    """The first half of a file of edits."""
    whole = edits_file(stage)
    path = stage.folder / "cut.safetensors"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return path


def edits_file(stage: Stage) -> Path:
    """A sound file of one edit."""
    path = stage.folder / "edits.safetensors"
    stage.edit().save(path)
    return path


def statistics_file(stage: Stage) -> Path:
    """A sound file of statistics."""
    path = stage.folder / "statistics.safetensors"
    stage.statistics().save(path)
    return path


def forged_file(stage: Stage, metadata: dict[str, str]) -> Path:
    """A safetensors file that claims to be one of ours."""
    path = stage.folder / "forged.safetensors"
    save_file({"0.left": torch.ones(2), "0.right": torch.ones(3)}, path, metadata)
    return path


def forged_edits(stage: Stage, **changes: object) -> Path:
    """A file of edits with an entry changed, or left out where it is None."""
    item = {
        "layer": "third", "shape": [2, 3], "direction": "key", "ridge": 0.1,
        "key_space": "patch", "solved_for": "", **changes,
    }  # fmt: skip
    item = {key: value for key, value in item.items() if value is not None}
    about = {"format": "rectify_widgets.edits.1", "edits": json.dumps([item])}
    return forged_file(stage, about)
