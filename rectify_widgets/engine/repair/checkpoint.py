"""A rectification on disk between two rounds, so that one that was killed can go on.

Imports torch only.  The file is one of edits, which `load_edits` reads too, with the state of the
loop and the options of the run in its description, so that another run's checkpoint is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rectify_widgets.engine.base.files import read_tensors, write_tensors
from rectify_widgets.engine.edit.edits import FORMAT, RankOneEdit, digest, pack_edits, unpack_edits
from rectify_widgets.engine.find.problem import Problem
from rectify_widgets.engine.measure.judge import Verdict
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.result import Evidence, Step

_DATA = ("model", "pairs", "reference", "validation")
"""What of a run is described by a digest."""


@dataclass
class State:
    """How far a rectification is: all that it needs, besides its input, to go on from there.

    Attributes:
        start, now: what was measured before the first edit and after the last.
        seconds: time by stage.
        edits: those kept so far, in order.
        steps: every trial.
        rounds: how many are done.
        flagged: rows of the references that carry the corruption and are left out.
        spare_flagged: the same of the spare ones.
        suspected: share of them that looked corrupted where they were too many to leave out.
        stopped: why it ended; None while there are rounds to come.
        evidence: for the diagnosis, once it has ended.
    """

    start: Verdict
    now: Verdict
    seconds: dict[str, float]
    edits: list[RankOneEdit] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    rounds: int = 0
    flagged: list[int] = field(default_factory=list)
    spare_flagged: list[int] = field(default_factory=list)
    suspected: float = 0.0
    stopped: str | None = None
    evidence: Evidence | None = None


class Checkpoint:
    """The file of one run; without a path nothing is stored.

    Args:
        path: see `check_file`.
        problem: with the model as given.
        validation: labelled inputs, or None.
        options: how it rectifies; only a limit of memory may differ when the run goes on.
    """

    def __init__(
        self,
        path: Path | None,
        problem: Problem,
        validation: tuple[Tensor, Tensor] | None,
        options: RectifyOptions,
    ) -> None:
        self._path = path
        self._run = {} if path is None else _describe(problem, validation, options)

    def save(self, state: State) -> None:
        """Replace the file as a whole, so that one whole state is on disk whenever the process dies."""
        if self._path is None:
            return
        tensors, edits = pack_edits(state.edits)
        rest = {name: value for name, value in vars(state).items() if name != "edits"}
        text = json.dumps(rest, default=asdict)
        words = {"edits": edits, "run": json.dumps(self._run), "state": text}
        write_tensors(self._path, FORMAT, tensors, {**words, "seal": _seal(words, tensors)})

    def load(self) -> State | None:
        """The state of this run; None where there is no file yet.

        Raises:
            ValueError: the file is damaged, no checkpoint, or of another run.
        """
        if self._path is None or not self._path.exists():
            return None
        try:
            words, tensors = read_tensors(self._path, FORMAT, "edits")
        except ValueError as error:
            raise _refused(self._path, "is damaged, or no checkpoint") from error
        if "state" not in words:
            raise _refused(self._path, "holds edits, but is no checkpoint")
        if words.get("seal") != _seal(words, tensors):
            raise _refused(self._path, "is damaged")
        before = json.loads(words["run"])
        for name, now in self._run.items():
            if before.get(name) != now:
                was = "another" if name in _DATA else f"{before.get(name)}, and not {now}"
                raise _refused(self._path, f"is of another run: its {name} was {was}")
        return _state(json.loads(words["state"]), unpack_edits(str(self._path), words, tensors))


def _refused(path: Path, why: str) -> ValueError:
    return ValueError(
        f"checkpoint: {str(path)!r} {why}; give another file name, or delete it to start over"
    )


def _describe(
    problem: Problem, validation: tuple[Tensor, Tensor] | None, options: RectifyOptions
) -> dict[str, str]:
    """What identifies a run: digests of the model as given and the data, and the options."""
    pairs, module = problem.pairs, problem.model
    data = {
        "model": [*module.named_parameters(), *module.named_buffers()],
        "pairs": [("x̃", pairs.corrupted), ("x", pairs.clean), ("y", problem.labels)],
        "reference": [("x", problem.references)] if problem.given else [],
        "validation": list(zip("xy", validation, strict=True)) if validation else [],
    }
    digests = {name: _digest(tensors) for name, tensors in data.items()}
    asked = asdict(options)
    del asked["memory_limit"]  # it changes no result
    return {**digests, **{name: json.dumps(value) for name, value in asked.items()}}


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        whole.update(f"{name} {digest(tensor)} ".encode())
    return whole.hexdigest()


def _seal(words: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """A digest of a file's content: safetensors itself does not detect a flipped bit."""
    whole = hashlib.blake2b(digest_size=16)
    for name in ("edits", "run", "state"):
        whole.update(f"{name} {words.get(name)} ".encode())
    whole.update(_digest(sorted(tensors.items())).encode())
    return whole.hexdigest()


def _state(described: dict[str, Any], edits: Sequence[RankOneEdit]) -> State:
    """The state from its JSON form."""
    steps = [Step(**step) for step in described.pop("steps")]
    start, now = (Verdict(**described.pop(name)) for name in ("start", "now"))
    if evidence := described.pop("evidence"):
        pairs = {name: tuple(value) for name, value in evidence.items() if isinstance(value, list)}
        evidence = Evidence(**{**evidence, **pairs})
    return State(
        edits=list(edits), steps=steps, start=start, now=now, evidence=evidence, **described
    )
