"""What was done by clicks, as Python that does the same: the dashboard's "Show code".

Imports the engine's options.  A `Recipe` notes where the pairs come from, and each call that made
edits with the edits that it started from; `Recipe.code` writes those calls that lead to a version.
"""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rectify_widgets.engine.edit.edits import RankOneEdit
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.result import Rectification, Step

GIVEN = "pairs"
"""What the code calls pairs that the user has, and never makes."""

GATHER = """images = torch.cat([
    batch[0] if isinstance(batch, (list, tuple)) else batch
    for batch in {}
])"""
"""All references as one tensor, where they are a data set or a loader."""

BLOCKS = 40
"""Masks that are written as one rectangle each, at most."""

BY_HAND = "edited step by step"
"""What made edits that come from more than one call, and how these ended."""

Versions = Sequence[RankOneEdit]
Call = tuple[str, dict[str, Any]]
"""The name of a file, and the options that it is written with, spelled as in code."""


@dataclass(frozen=True, eq=False)
class Act:
    """A call that made edits of a version."""

    before: tuple[RankOneEdit, ...]
    edits: tuple[RankOneEdit, ...]
    name: str
    options: dict[str, object]
    outcome: Rectification | None = None
    """Of a rectification, without its model."""

    @property
    def cut(self) -> bool:
        """Whether it was cancelled."""
        return self.outcome is not None and self.outcome.stopped == "cancelled"


class Recipe:
    """The calls behind the dashboard's buttons.

    Args:
        validation: whether labelled inputs were given to check each edit on.
        reference: the references that were given, or None.
        seed: of what is measured.
    """

    def __init__(self, *, validation: bool, reference: Any, seed: int = 0) -> None:
        self._seed = seed
        self._reference: dict[str, object] = (
            {} if reference is None else {"reference": Word("reference")}
        )
        self._validation: dict[str, object] = (
            {"validation": Word("validation")} if validation else {}
        )
        self._images = "reference" if isinstance(reference, Tensor) else "images"
        loader = "torch.utils.data.DataLoader(reference, 256)"
        self._loader = "reference" if isinstance(reference, DataLoader) else loader
        self._source: list[str] = []
        self._acts: list[Act] = []
        self._saved: tuple[list[RankOneEdit], str] | None = None
        self._reported: tuple[list[RankOneEdit], Call] | None = None

    # -- what is noted ----------------------------------------------------------------------------

    def given(self) -> None:
        """The user has the pairs."""
        self._begin([])

    def suspected(self, search: str, seed: int, rank: int) -> None:
        """The pairs are those of a suspicion."""
        call = _call("rw.reveal", ["model", "reference"], {"search": search, "seed": seed})
        self._begin([f"found = {call}", f"pairs = found[{rank}].pairs"])

    def painted(
        self, rows: Sequence[int], masks: Tensor, options: dict[str, object], *, references: bool
    ) -> None:
        """The pairs are inputs with these boolean masks ``K × H × W`` painted out.

        Args:
            rows: which inputs, or which references.
            masks: one for each of them.
            options: of `rectify_widgets.cleanse`, apart from model and references.
            references: whether ``rows`` count references, or the inputs that were given.
        """
        lines = []
        if references and self._images == "images":
            lines += [GATHER.format(self._loader)]
        lines.append(f"odd = {self._images if references else 'inputs'}[{list(rows)}]")
        lines += _masks(masks)
        options = options | {"model": Word("model")} | self._reference
        lines += [f"clean = {_call('rw.cleanse', ['odd', 'masks'], options)}"]
        self._begin([*lines, "pairs = rw.SamplePairs(odd, clean)"])

    def _begin(self, source: list[str]) -> None:
        self._source, self._saved, self._reported = source, None, None
        self._acts.clear()

    def edited(self, before: Versions, edits: Versions, layer: str | None) -> None:
        """One layer of a version was edited."""
        options = {} if layer is None else {"layer": layer}
        self._acts.append(Act(tuple(before), tuple(edits), "rw.solve_edit", {**options}))

    def rectified(self, before: Versions, result: Rectification, options: RectifyOptions) -> None:
        """A version was rectified."""
        usual = asdict(RectifyOptions())
        unusual = {name: one for name, one in asdict(options).items() if one != usual[name]}
        unusual = self._validation | unusual
        outcome = replace(result, model=nn.Identity())
        self._acts.append(Act(tuple(before), tuple(result.edits), "rw.rectify", unusual, outcome))

    def saved(self, edits: Versions, path: str) -> None:
        """These edits were written to a file."""
        self._saved = list(edits), path

    def saved_to(self, edits: Versions) -> str | None:
        """Name of the file that these edits were written to, or None."""
        if self._saved is None or not edits or not _same(self._saved[0], edits):
            return None
        return self._saved[1]

    def reported(self, edits: Versions, call: Call) -> None:
        """A report of these edits was written: to which page, with which options."""
        self._reported = list(edits), call

    def reported_to(self, edits: Versions) -> str | None:
        """Name of the page that reports these edits, or None."""
        call = self._report_of(edits)
        return None if call is None else call[0]

    def _report_of(self, edits: Versions) -> Call | None:
        if self._reported is None or not edits or not _same(self._reported[0], edits):
            return None
        return self._reported[1]

    def outcome(self, edits: Versions) -> Rectification | None:
        """The one rectification of the model as given that made these edits, without its model."""
        acts = self._path(edits)
        if len(acts) != 1 or acts[0].cut or not _same(acts[0].edits, edits):
            return None
        return acts[0].outcome

    def trials(self, edits: Versions) -> tuple[Step, ...]:
        """The trials of all rectifications on the way to these edits."""
        outcomes = [act.outcome for act in self._path(edits)]
        return tuple(step for one in outcomes if one is not None for step in one.steps)

    def _path(self, edits: Versions) -> list[Act]:
        """The calls that lead to these edits."""
        acts, done = list[Act](), list[RankOneEdit]()
        while len(done) < len(edits):
            acts.append(act := self._next(done, edits))
            done += act.edits[: _alike(act.edits, edits[len(done) :])]
        return acts

    # -- what is written --------------------------------------------------------------------------

    def code(self, edits: Versions, report: Call | None = None) -> str:
        """Python that makes the same edits from ``model`` and what else the dashboard was given.

        ``report`` is about to be written of them; None takes the one that was.
        """
        report = report or self._report_of(edits)
        gather = report is not None and self.outcome(edits) is None
        body = [*self._source, ""] if self._source else []
        done: list[RankOneEdit] = []
        if gather:
            body += ["trials, flagged = [], torch.empty(0, dtype=torch.int64)"]
        for act in self._path(edits):
            body += self._lines(act, first=not done)
            if gather and act.outcome is not None:
                body += ["trials += result.steps"]
                if not done or len(act.outcome.flagged):
                    body += ["flagged = result.flagged"]
            kept = _alike(act.edits, edits[len(done) :])
            done += act.edits[:kept]
            if kept < len(act.edits) or act.cut:
                body += [f"edits = edits[:{len(done)}]  # later ones were not kept"]
        if edits:
            body += ["", "repaired = copy.deepcopy(model)", "rw.Edits(edits).apply(repaired)"]
            if (path := self.saved_to(edits)) is not None:
                body += [f"rw.save_edits(edits, {path!r})"]
        if report is not None:
            path, options = report
            body += self._gathered() if gather else []
            body += [_call("result.report", [repr(path), "pairs"], options)]
        text = "\n".join(body)
        modules = ("base64", "copy", "zlib", "numpy as np", "torch")
        used = [f"import {name}" for name in modules if f"{name.split()[-1]}." in text]
        given = ["model", *self._reference, *self._validation]
        if not self._source:
            given.append(GIVEN)
        elif "odd = inputs" in text:
            given.append("inputs")
        words = [] if report is None else list(report[1].values())
        told = [one.strip("(").split(".")[0] for one in words if isinstance(one, Word)]
        given += dict.fromkeys(told)
        ours = ["import rectify_widgets as rw"]
        if "EditMeasure(" in text:
            ours += ["from rectify_widgets.engine.repair.measuring import EditMeasure"]
        head = f"# {', '.join(given)}: what the dashboard was given"
        return "\n".join([*used, "", *ours, "", head, text]).strip() + "\n"

    def _gathered(self) -> list[str]:
        """Lines that make one result of several calls, on one scale."""
        options = {"reference": None} | self._reference | self._validation
        options |= {"seed": self._seed, "exclude": Word("flagged")}
        measure = _call("EditMeasure", ["model", "pairs"], options)
        return [
            f"measure = {measure}",
            "before, after = measure.measure(model), measure.measure(repaired)",
            "result = rw.Rectification(",
            f"    repaired, edits, trials, {BY_HAND!r}, {BY_HAND!r},",
            "    before.gap, after.gap, after.degradation, flagged,",
            ")",
        ]

    def _next(self, done: list[RankOneEdit], edits: Versions) -> Act:
        """The call that made the next edit."""
        for act in self._acts:
            if _same(act.before, done) and act.edits and act.edits[0] is edits[len(done)]:
                return act
        raise ValueError("edits: got some that this dashboard did not make, want its own")

    def _lines(self, act: Act, *, first: bool) -> list[str]:
        lines, model = [], "model"
        if not first:
            model = "version"
            lines = ["version = copy.deepcopy(model)", "rw.Edits(edits).apply(version)"]
        call = _call(act.name, [model, "pairs"], self._reference | act.options)
        if act.name == "rw.solve_edit":
            return [*lines, f"edits = [{call}]" if first else f"edits.append({call})"]
        lines.append(f"result = {call}")
        if act.cut:
            lines.append("# it was cancelled here: this call goes on to its end")
        return [*lines, "edits = [*result.edits]" if first else "edits += result.edits"]


class Word(str):
    """A name in the code, which is not quoted."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _call(name: str, given: Sequence[str], options: dict[str, Any]) -> str:
    """A call, broken after its bracket and between its arguments where it is long."""
    words = [*given, *(f"{key}={value!r}" for key, value in options.items())]
    if len(line := ", ".join(words)) < 72:
        return f"{name}({line})"
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) < 88:
            lines[-1] += f", {word}"
        else:
            lines.append(word)
    joined = ",\n    ".join(lines)
    return f"{name}(\n    {joined}\n)"


def _masks(masks: Tensor) -> list[str]:
    """Lines that make the masks: rectangles where they are, packed bits otherwise."""
    shape = tuple(masks.shape)
    blocks = []
    for place, mask in enumerate(masks):
        spots = mask.nonzero()
        (top, left), (bottom, right) = spots.min(dim=0).values, spots.max(dim=0).values + 1
        if not mask[top:bottom, left:right].all():
            break
        blocks.append(f"masks[{place}, {top}:{bottom}, {left}:{right}] = True")
    if len(blocks) == len(masks) <= BLOCKS:
        return [f"masks = torch.zeros({shape}, dtype=torch.bool)", *blocks]
    bits = b64encode(zlib.compress(np.packbits(masks.cpu().numpy()).tobytes(), 9)).decode("ascii")
    return [
        f'bits = np.frombuffer(zlib.decompress(base64.b64decode("{bits}")), np.uint8)',
        f"bits = np.unpackbits(bits, count={masks.numel()}).astype(bool)",
        f"masks = torch.from_numpy(bits.reshape{shape})",
    ]


def _alike(one: Versions, other: Versions) -> int:
    """How many edits two sequences have in common from the start."""
    count = 0
    while count < min(len(one), len(other)) and one[count] is other[count]:
        count += 1
    return count


def _same(one: Versions, other: Versions) -> bool:
    return len(one) == len(other) == _alike(one, other)
