"""Bad input to solving, applying, keeping and to the loop that rectifies.

Imports the engine; adds its cases to ``bad_inputs.CASES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import rectify_widgets as rw
from tests.engine import bad_models as models
from tests.engine.bad_inputs import (
    Stage,
    Torn,
    bad,
    cut_file,
    forged_edits,
    spoiled,
    statistics_file,
    text_file,
    weights_file,
)

# fmt: off
# --- solve_edit ----------------------------------------------------------------------------------

SOLVE = "solve_edit"


def _solve(**options: Any) -> Any:
    return lambda s: rw.solve_edit(s.model, s.pairs, **{"reference": s.reference, **options})


bad(SOLVE, "unknown layer, two letters swapped", "layer", ValueError, "no .*did you mean 'second'",
    _solve(layer="secnod"))
bad(SOLVE, "a layer by number", "layer", TypeError, "got 0, want the dotted name",
    _solve(layer=0))
bad(SOLVE, "a layer that is batch norm", "layer", ValueError, "no layer 'norm' .*editable layers",
    _solve(layer="norm"))
bad(SOLVE, "a layer that is lazy", "model", ValueError, "lazy .* run it once",
    _solve(), model=models.lazy)
bad(SOLVE, "a layer that the corruption does not reach", "layer", ValueError,
    "does not reach layer 'opposite'",
    _solve(layer="opposite", direction="key", ridge=0.1), model=models.Halves)
bad(SOLVE, "the same, with the rest to be chosen", "layer", ValueError,
    "does not reach layer 'opposite'",
    _solve(layer="opposite"), model=models.Halves)
bad(SOLVE, "unknown direction", "direction", ValueError, "got 'keys', .*did you mean 'key'",
    _solve(direction="keys"))
bad(SOLVE, "negative ridge", "ridge", ValueError, "got -1.0, want a number from 0",
    _solve(ridge=-1.0))
bad(SOLVE, "NaN for the ridge", "ridge", ValueError, "got nan, want a number",
    _solve(ridge=float("nan")))
bad(SOLVE, "True for the ridge", "ridge", TypeError, "got True, want a number",
    _solve(ridge=True))
bad(SOLVE, "a list of ridges", "ridge", TypeError, r"got \[0.1\], want a number",
    _solve(ridge=[0.1]))
bad(SOLVE, "unknown key space", "key_space", ValueError, "got 'channels', .*mean 'channel'",
    _solve(key_space="channels"))
bad(SOLVE, "unknown solver", "solver", ValueError, "got 'matrixfree', .*mean 'matrix-free'",
    _solve(solver="matrixfree"))
bad(SOLVE, "patch statistics for channel keys", "statistics", ValueError, "want 'channel' keys",
    lambda s: rw.solve_edit(
        s.model, s.pairs, layer="third", statistics=s.statistics(), key_space="channel",
        direction="key", ridge=0.1,
    ))
bad(SOLVE, "a dict of statistics for channel keys", "statistics", TypeError, "got dict, want KeyS",
    _solve(layer="third", statistics={}, key_space="channel", direction="key", ridge=0.1))
bad(SOLVE, "statistics of another layer", "statistics", ValueError, "none for layer 'third'",
    lambda s: rw.solve_edit(
        s.model, s.pairs, layer="third", statistics=s.statistics(layers=["first"])
    ))
bad(SOLVE, "stale statistics", "statistics", ValueError, "stale for layer 'third'",
    lambda s: rw.solve_edit(s.model, s.pairs, layer="third", statistics=s.statistics()),
    model=models.other)
bad(SOLVE, "references that are all zero", "statistics", ValueError,
    "keys of layer 'first' are zero on all references.* choose another layer",
    _solve(layer="first", direction="key", ridge=0.1, reference=torch.zeros(16, 3, 8, 8)))
bad(SOLVE, "seed -1", "seed", ValueError, "got -1, want at least 0", _solve(seed=-1))

# --- applying and taking back --------------------------------------------------------------------

APPLY = "RankOneEdit.apply"
REVERT = "RankOneEdit.revert"


def _apply(s: Stage) -> None:
    s.given.apply(s.model)


def _an_edit(s: Stage) -> rw.RankOneEdit:
    return s.edit()


def _head_edit(s: Stage) -> rw.RankOneEdit:
    return s.edit(layer="head")


def _huge(s: Stage) -> rw.RankOneEdit:
    edit = s.edit()
    edit.left.fill_(float("inf"))
    return edit


def _renamed_edit(s: Stage, layer: str) -> rw.RankOneEdit:
    return replace(s.edit(), layer=layer)


def _out_of_order(s: Stage) -> None:
    first, second = s.given
    first.apply(s.model)
    second.apply(s.model)
    try:
        first.revert(s.model)
    finally:
        second.revert(s.model)
        first.revert(s.model)


def _twice(s: Stage) -> None:
    s.given.apply(s.model)
    try:
        s.given.apply(s.model)
    finally:
        s.given.revert(s.model)


bad(APPLY, "a function instead of a module", "model", TypeError, "got function, want .*Module",
    _apply, given=_an_edit, model=lambda: lambda x: x)
bad(APPLY, "a model with other weights", "model", ValueError, "not the one .* solved for.*force",
    _apply, given=_an_edit, model=models.other)
bad(APPLY, "a model with other names", "model", ValueError, "no layer 'third'.*mean '0.third'",
    _apply, given=_an_edit, model=models.renamed)
bad(APPLY, "a layer of another shape", "model", ValueError, r"\(5, 24\), .* wants \(4, 24\)",
    _apply, given=_head_edit, model=models.wider)
bad(APPLY, "a second time", "model", ValueError, "not the one .* solved for",
    _twice, given=_an_edit, writes=True)
bad(APPLY, "a model on the meta device", "model", ValueError, "'third' .* meta device",
    _apply, given=_an_edit, model=models.on_meta)
bad(APPLY, "a parametrised layer", "model", ValueError, "'third' .* computed from other param",
    _apply, given=_an_edit, model=models.parametrised)
bad(APPLY, "a lazy layer", "model", ValueError, "'2' .* lazy: run the model once",
    _apply, given=lambda s: _renamed_edit(s, "2"), model=models.lazy)
bad(APPLY, "an infinite edit", "model", ValueError, "weight of layer 'third' infinite or NaN",
    _apply, given=_huge)
bad("Edits.apply", "the second edit is refused", "model", ValueError, "no layer 'fourth'",
    lambda s: rw.Edits([s.edit(), _renamed_edit(s, "fourth")]).apply(s.model),
    writes=True)
bad("Edits.renamed", "a dictionary of names", "names", TypeError, "got dict, want a function",
    lambda s: rw.Edits([s.edit()]).renamed({}))  # type: ignore[arg-type]
bad("Edits.renamed", "no new name", "names", TypeError, "got NoneType, want a function",
    lambda s: rw.Edits([s.edit()]).renamed({}.get))  # type: ignore[arg-type]
bad("Edits", "something that is no edit", "edits", TypeError, "got str, want RankOneEdit",
    lambda s: rw.Edits(["third"]))  # type: ignore[list-item]
bad(REVERT, "without apply", "model", ValueError, "is not applied to it",
    lambda s: s.given.revert(s.model), given=_an_edit)
bad(REVERT, "out of order", "model", ValueError, "'first' was applied after .* later edit first",
    _out_of_order, given=lambda s: [s.edit(), s.edit(layer="first")],
    writes=True)
bad(REVERT, "on a list", "model", TypeError, "got list, want a torch",
    lambda s: s.given.revert([]), given=_an_edit)


# --- keeping -------------------------------------------------------------------------------------

LOAD = "load_edits"

bad(LOAD, "no such file", "path", FileNotFoundError, "no file '.*absent",
    lambda s: rw.load_edits(s.folder / "absent.safetensors"))
bad(LOAD, "a folder", "path", FileNotFoundError, "no file '",
    lambda s: rw.load_edits(s.folder))
bad(LOAD, "None", "path", TypeError, "got NoneType, want",
    lambda s: rw.load_edits(None))  # type: ignore[arg-type]
bad(LOAD, "a text file", "path", ValueError, "is not a safetensors file",
    lambda s: rw.load_edits(text_file(s)))
bad(LOAD, "a file cut short", "path", ValueError, "is not a safetensors file",
    lambda s: rw.load_edits(cut_file(s)))
bad(LOAD, "a safetensors file of weights", "path", ValueError, "holds no edits",
    lambda s: rw.load_edits(weights_file(s)))
bad(LOAD, "a file of statistics", "path", ValueError, "holds no edits",
    lambda s: rw.load_edits(statistics_file(s)))
bad(LOAD, "an entry without its layer", "path", ValueError, "damaged edits",
    lambda s: rw.load_edits(forged_edits(s, layer=None)))
bad(LOAD, "a shape that the tensors do not fit", "path", ValueError, "damaged edits",
    lambda s: rw.load_edits(forged_edits(s, shape=[7, 5])))
bad("save_edits", "into a folder that is not there", "path", FileNotFoundError, "no folder '",
    lambda s: rw.save_edits([s.edit()], s.folder / "absent" / "edits.safetensors"))
bad("save_edits", "something that is no edit", "edits", TypeError, "got str, want RankOneEdit",
    lambda s: rw.save_edits(["third"], s.folder / "x"))  # type: ignore[list-item]

# --- rectify -------------------------------------------------------------------------------------

RECTIFY = "rectify"


def _rectify(**options: Any) -> Any:
    return lambda s: rw.rectify(s.model, s.pairs, **{"reference": s.reference, **options})


def _corrupting(function: Callable[[Tensor], Any]) -> Any:
    def shaped(x: Tensor) -> Any:
        return function(x)

    return lambda s: rw.rectify(
        s.model, rw.SamplePairs(s.marked, s.clean, corrupt=shaped), reference=s.reference
    )


def _validated(s: Stage) -> Any:
    return rw.rectify(s.model, s.pairs, reference=s.reference, validation=s.given)


bad(RECTIFY, "a function instead of a module", "model", TypeError, "got function, want .*Module",
    _rectify(), model=lambda: lambda x: x)
bad(RECTIFY, "a list of pairs", "pairs", TypeError, "got list, want SamplePairs",
    lambda s: rw.rectify(s.model, [s.pairs], reference=s.reference))  # type: ignore[arg-type]
bad(RECTIFY, "no references in a tensor", "reference", ValueError, "want at least one sample",
    _rectify(reference=torch.empty(0, 3, 8, 8)))
bad(RECTIFY, "NaN in a reference", "reference", ValueError, "got NaN",
    lambda s: rw.rectify(s.model, s.pairs, reference=s.given),
    given=lambda s: spoiled(s.reference))
bad(RECTIFY, "unknown strategy", "strategy", ValueError, "got 'dynamik', .*mean 'dynamic'",
    _rectify(strategy="dynamik"))
bad(RECTIFY, "unknown method", "method", ValueError, "got 'trail', .*mean 'trial'",
    _rectify(method="trail"))
bad(RECTIFY, "a layer with the dynamic strategy", "layer", ValueError, "want strategy='static'",
    _rectify(layer="third"))
bad(RECTIFY, "unknown layer with the static one", "layer", ValueError, "no layer 'thirt'.*'third'",
    _rectify(strategy="static", layer="thirt"))
bad(RECTIFY, "an empty name of a layer", "layer", ValueError, "no layer ''",
    _rectify(strategy="static", layer=""))
bad(RECTIFY, "a layer that the corruption does not reach", "layer", ValueError,
    "does not reach layer 'opposite'",
    _rectify(strategy="static", layer="opposite", target_gap=0.0), model=models.Halves)
bad(RECTIFY, "no rounds", "max_rounds", ValueError, "got 0, want at least 1",
    _rectify(max_rounds=0))
bad(RECTIFY, "one and a half rounds", "max_rounds", TypeError, "got 1.5, want a whole number",
    _rectify(max_rounds=1.5))
bad(RECTIFY, "rounds as a word", "max_rounds", TypeError, "got '8', want a whole number",
    _rectify(max_rounds="8"))
bad(RECTIFY, "degradation in per cent", "max_degradation", ValueError, "got 2, want .* 0.0 to 1.0",
    _rectify(max_degradation=2))
bad(RECTIFY, "negative target", "target_gap", ValueError, "got -1, want a number from 0.0",
    _rectify(target_gap=-1))
bad(RECTIFY, "steps to refine: -1", "refine_steps", ValueError, "got -1, want at least 0",
    _rectify(refine_steps=-1))
bad(RECTIFY, "one and a half steps to refine", "refine_steps", TypeError,
    "got 1.5, want a whole number", _rectify(refine_steps=1.5))
bad(RECTIFY, "True for the steps to refine", "refine_steps", TypeError,
    "got True, want a whole number", _rectify(refine_steps=True))
bad(RECTIFY, "steps to refine as a word", "refine_steps", TypeError,
    "got 'many', want a whole number", _rectify(refine_steps="many"))
bad(RECTIFY, "a corruption that returns nothing", "corrupt", TypeError,
    "shaped returned NoneType, want a floating-point tensor", _corrupting(lambda _: None))
bad(RECTIFY, "a corruption that returns another shape", "corrupt", ValueError,
    r"shaped returned shape \(16, 3, 8, 4\)", _corrupting(lambda x: x[..., :4]))
bad(RECTIFY, "seed None", "seed", TypeError, "got None, want a whole number",
    _rectify(seed=None))
bad(RECTIFY, "validation without labels", "validation", TypeError, r"want \(inputs, labels\)",
    _validated, given=lambda s: s.reference)
bad(RECTIFY, "validation inputs of another size", "validation[0]", ValueError, r"want \(3, 8, 8\)",
    _validated, given=lambda s: (s.reference[..., :4], s.labels))
bad(RECTIFY, "validation labels past the last class", "validation[1]", ValueError, "want 0 to 3",
    _validated, given=lambda s: (s.reference, s.labels + 4))
bad(RECTIFY, "a model that holds a lock", "model", ValueError, "cannot be copied .*__deepcopy__",
    _rectify(), model=models.Locked)
bad(RECTIFY, "a model that refuses to be copied", "model", ValueError, "cannot be copied .*only one",
    _rectify(), model=models.Unique)
bad(RECTIFY, "a lazy model", "model", ValueError, "lazy layers .*run it once",
    _rectify(), model=models.lazy)
bad(RECTIFY, "a model on the meta device", "model", ValueError, "meta device, want a model",
    _rectify(), model=models.on_meta)
bad(RECTIFY, "infinity in a weight", "model", ValueError, "NaN or infinite, want a model with fin",
    _rectify(), model=models.broken("head", float("inf")))
bad(RECTIFY, "a model without layers", "layers", ValueError, "no editable layer; want at least",
    _rectify(), model=models.without_layers)
bad(RECTIFY, "a model that answers in words", "model", TypeError, "output is str, want a tensor",
    _rectify(), model=lambda: models.Answers(lambda y: "cat"))
bad(RECTIFY, "progress that is no function", "progress", TypeError, "got str, want a function",
    _rectify(progress="yes"))
bad(RECTIFY, "cancel that is no function", "cancel", TypeError, "got float, want a function",
    _rectify(cancel=0.5))

# --- what the user's own code raises passes through ----------------------------------------------

bad(SOLVE, "the model raises in its first forward pass", "", models.Boom, "^call 1$",
    _solve(), model=lambda: models.Failing(at=1))
bad(RECTIFY, "the model raises in its twentieth forward pass", "", models.Boom, "^call 20$",
    _rectify(target_gap=0.0), model=lambda: models.Failing(at=20))
bad(RECTIFY, "progress raises", "", models.Boom, "^out of paper$",
    _rectify(target_gap=0.0, progress=models.fails))
bad(RECTIFY, "cancel raises", "", models.Boom, "^out of paper$",
    _rectify(target_gap=0.0, cancel=models.fails))
bad(RECTIFY, "a data set raises", "", models.Boom, "^sample 2 cannot be read$",
    lambda s: rw.rectify(s.model, s.pairs, reference=Torn(list(s.reference))))
bad(SOLVE, "cancelled at once", "", rw.Cancelled, "^cancelled$",
    _solve(cancel=lambda: True))
