"""Bad input to pairs, corruptions, statistics, the layer catalogue, localisation, detection, metrics.

Imports the engine; adds its cases to ``bad_inputs.CASES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import rectify_widgets as rw
from tests.engine import bad_models as models
from tests.engine.bad_inputs import (
    Samples,
    Stage,
    Stream,
    bad,
    edits_file,
    forged_file,
    spoiled,
    text_file,
)
from tests.engine.traces import images

# fmt: off
# --- SamplePairs ---------------------------------------------------------------------------------

PAIRS = "SamplePairs"


def _pair(s: Stage) -> Any:
    return rw.SamplePairs(s.given, s.clean)


def _labelled_pair(s: Stage) -> Any:
    return rw.SamplePairs(s.marked, s.clean, labels=s.given)


bad(PAIRS, "NaN in a corrupted input", "corrupted", ValueError, "got NaN .* want finite",
    _pair, given=lambda s: spoiled(s.marked))
bad(PAIRS, "infinity in a clean input", "clean", ValueError, "infinite values, want finite",
    lambda s: rw.SamplePairs(s.marked, s.given),
    given=lambda s: spoiled(s.clean, math.inf))
bad(PAIRS, "integer images", "corrupted", TypeError, r"torch\.uint8, want floating.*\.float\(\)",
    _pair, given=lambda s: (s.marked * 255).to(torch.uint8))
bad(PAIRS, "complex images", "corrupted", TypeError, "complex64, want floating",
    _pair, given=lambda s: s.marked.to(torch.complex64))
bad(PAIRS, "a list instead of a tensor", "corrupted", TypeError, "got list, want .* N × C",
    _pair, given=lambda s: s.marked.tolist())
bad(PAIRS, "a numpy array", "corrupted", TypeError, "got ndarray, want .*torch.Tensor",
    _pair, given=lambda s: s.marked.numpy())
bad(PAIRS, "None", "corrupted", TypeError, "got NoneType, want",
    _pair, given=lambda s: None)
bad(PAIRS, "a sparse tensor", "corrupted", TypeError, r"torch\.sparse_coo, want a dense",
    _pair, given=lambda s: s.marked.to_sparse())
bad(PAIRS, "a tensor on the meta device", "corrupted", ValueError, "meta device, want .* data",
    _pair, given=lambda s: s.marked.to("meta"))
bad(PAIRS, "a flat vector", "corrupted", ValueError, r"shape \(192,\), want .*\[None\]",
    _pair, given=lambda s: s.marked[0].flatten())
bad(PAIRS, "no pairs", "corrupted", ValueError, r"\(0, 3, 8, 8\), want at least one",
    _pair, given=lambda s: s.marked[:0])
bad(PAIRS, "one of the two without batch dimension", "clean", ValueError,
    r"\(8, 8\), want \(3, 8, 8\); add the batch dimension",
    lambda s: rw.SamplePairs(s.marked, s.clean[0]))
bad(PAIRS, "different image sizes", "clean", ValueError, r"\(3, 4, 4\), want \(3, 8, 8\)",
    lambda s: rw.SamplePairs(s.marked, s.clean[..., ::2, ::2]))
bad(PAIRS, "more clean inputs than corrupted ones", "clean", ValueError,
    "got 2 samples for 1 corrupted .* want one",
    lambda s: rw.SamplePairs(s.marked[:1], s.clean))
bad(PAIRS, "an identical pair", "corrupted", ValueError, "pair 1 has identical .* want the corr",
    _pair, given=lambda s: torch.cat([s.marked[:1], s.clean[1:]]))
bad(PAIRS, "too few labels", "labels", ValueError, r"\(1,\), want \(2,\): one class number",
    _labelled_pair, given=lambda s: torch.tensor([1]))
bad(PAIRS, "labels as numbers with a point", "labels", TypeError, "float32, want whole class",
    _labelled_pair, given=lambda s: torch.tensor([1.0, 2.0]))
bad(PAIRS, "labels as words", "labels", TypeError, "got list, want a tensor of 2 class",
    _labelled_pair, given=lambda s: ["cat", "dog"])
bad(PAIRS, "a negative label", "labels", ValueError, "from -1 to 2, want 0 or more",
    _labelled_pair, given=lambda s: torch.tensor([-1, 2]))
bad(PAIRS, "labels neither there nor not", "labels", ValueError, r"want .* 2 × labels zeros and",
    _labelled_pair, given=lambda s: 2 * torch.eye(4, dtype=torch.long)[:2])
bad("localize", "one-hot labels", "pairs.labels", ValueError, r"\(2, 4\), want \(2,\)",
    lambda s: rw.localize(
        s.model, replace(s.pairs, labels=torch.eye(4)[:2]), reference=s.reference
    ))
bad("SamplePairs[...]", "an index past the end", "index", IndexError, "got 5, want one of 2 pairs",
    lambda s: s.pairs[5])

# --- Transplant ----------------------------------------------------------------------------------

TRANSPLANT = "Transplant"

bad(TRANSPLANT, "opacity 3", "opacity", ValueError, "got 3, want a number from 0",
    lambda s: rw.Transplant(s.pairs, opacity=3))
bad(TRANSPLANT, "opacity as a word", "opacity", TypeError, "got 'half', want a number",
    lambda s: rw.Transplant(s.pairs, opacity="half"))  # type: ignore[arg-type]
bad(TRANSPLANT, "inputs of another size", "inputs", ValueError, r"\(3, 4, 4\), want \(3, 8, 8\)",
    lambda s: rw.Transplant(s.pairs)(s.given), given=lambda s: s.clean[..., :4, :4])
bad(TRANSPLANT, "a tensor instead of pairs", "pairs", TypeError, "got Tensor, want SamplePairs",
    lambda s: rw.Transplant(s.marked))  # type: ignore[arg-type]
bad(TRANSPLANT, "seed -1", "seed", ValueError, "got -1, want at least 0",
    lambda s: rw.Transplant(s.pairs, seed=-1))

# --- estimate_corruption -------------------------------------------------------------------------

ESTIMATE = "estimate_corruption"


def _estimate(**options: Any) -> Callable[[Stage], object]:
    return lambda s: rw.estimate_corruption(
        s.model, s.pairs, **{"reference": s.reference, **options}
    )


bad(ESTIMATE, "no model", "model", TypeError, "got str, want",
    _estimate(), model=lambda: "resnet")
bad(ESTIMATE, "a tensor instead of pairs", "pairs", TypeError, "got Tensor, want SamplePairs",
    lambda s: rw.estimate_corruption(s.model, s.marked))  # type: ignore[arg-type]
bad(ESTIMATE, "a reference of another size", "reference", ValueError, r"want \(3, 8, 8\)",
    lambda s: rw.estimate_corruption(s.model, s.pairs, reference=s.given),
    given=lambda s: s.reference[..., :6])
bad(ESTIMATE, "NaN in the reference", "reference", ValueError, "NaN",
    lambda s: rw.estimate_corruption(s.model, s.pairs, reference=s.given),
    given=lambda s: s.reference * float("nan"))
bad(ESTIMATE, "half a seed", "seed", TypeError, "got 0.5, want a whole number",
    _estimate(seed=0.5))
bad(ESTIMATE, "progress that cannot be called", "progress", TypeError, "got int, want a function",
    _estimate(progress=3))
bad(ESTIMATE, "cancelled at once", "", rw.Cancelled, "cancelled",
    _estimate(cancel=lambda: True))

# --- KeyStatistics -------------------------------------------------------------------------------

COLLECT = "KeyStatistics.collect"


def _collect(s: Stage) -> Any:
    return rw.KeyStatistics.collect(s.model, s.given)


def _collected(**options: Any) -> Any:
    return lambda s: rw.KeyStatistics.collect(s.model, s.reference, **options)


bad(COLLECT, "NaN in a reference", "reference", ValueError, "got NaN .* want finite",
    _collect, given=lambda s: spoiled(s.reference))
bad(COLLECT, "NaN in the last sample of a data set", "reference", ValueError, "got NaN .* want",
    _collect,
    given=lambda s: Samples([*images(99), spoiled(s.reference[0])]))
bad(COLLECT, "an empty tensor", "reference", ValueError, "want at least one sample",
    _collect, given=lambda s: s.reference[:0])
bad(COLLECT, "an empty data set", "reference", ValueError, "got no samples, want at least one",
    _collect, given=lambda s: Samples([]))
bad(COLLECT, "an empty stream", "reference", ValueError, "got no samples, want at least one",
    _collect, given=lambda s: Stream([]))
bad(COLLECT, "an empty loader", "reference", ValueError, "got no samples, want at least one",
    _collect, given=lambda s: DataLoader(Samples([]), batch_size=4))
bad(COLLECT, "a list of tensors", "reference", TypeError, "got list, want .*Dataset or a DataL",
    _collect, given=lambda s: list(s.reference))
bad(COLLECT, "None", "reference", TypeError, "got NoneType, want a tensor",
    _collect, given=lambda s: None)
bad(COLLECT, "integer images in a data set", "reference", TypeError, "uint8, want floating",
    _collect, given=lambda s: Samples(list((s.reference * 9).to(torch.uint8))))
bad(COLLECT, "samples of different sizes", "reference", ValueError,
    "different shapes .* want one shape; resize",
    _collect, given=lambda s: Samples([images(1)[0], images(1)[0, :, :4]]))
bad(COLLECT, "samples without a tensor", "reference", TypeError,
    "sample of type dict without an input tensor, want",
    _collect, given=lambda s: Samples([{"label": 3}]))
bad(COLLECT, "a function instead of a module", "model", TypeError, "got function, want .*Module",
    lambda s: rw.KeyStatistics.collect(s.model, s.reference),
    model=lambda: lambda x: x)
bad(COLLECT, "NaN in a weight", "model", ValueError, "layer 'third' are NaN .* want a model with",
    _collected(), model=models.broken("second"))
bad(COLLECT, "a model on the meta device", "model", ValueError, "meta device, want a model",
    _collected(), model=models.on_meta)
bad(COLLECT, "a model without layers", "layers", ValueError, "no editable layer; want at least",
    _collected(), model=models.without_layers)
bad(COLLECT, "an unknown layer, one letter off", "layers", ValueError,
    r"no layer 'thrid' .*did you mean 'third'",
    _collected(layers=["thrid"]))
bad(COLLECT, "an empty list of layers", "layers", ValueError, "got an empty list, want at least",
    _collected(layers=[]))
bad(COLLECT, "a number for the layers", "layers", TypeError, "got 3, want a list of layer names",
    _collected(layers=3))
bad(COLLECT, "a layer that is batch norm", "layers", ValueError, "no layer 'norm' .* editable lay",
    _collected(layers=["norm"]))
bad(COLLECT, "unknown key space", "key_space", ValueError, "got 'patsh', .*did you mean 'patch'",
    _collected(key_space="patsh"))
bad(COLLECT, "batch size 0", "batch_size", ValueError, "got 0, want at least 1",
    _collected(batch_size=0))
bad(COLLECT, "no positions", "positions", ValueError, "got 0, want at least 1",
    _collected(positions=0))
bad(COLLECT, "a seed that is a word", "seed", TypeError, "got 'x', want a whole number",
    _collected(seed="x"))
bad("KeyStatistics.merge", "something else", "other", TypeError, "got dict, want KeyStatistics",
    lambda s: s.statistics().merge({}))  # type: ignore[arg-type]
bad("KeyStatistics.merge", "another key space", "other", ValueError, "'channel' keys, want 'patch'",
    lambda s: s.statistics().merge(s.statistics(key_space="channel")))
bad("KeyStatistics.merge", "other layers", "other", ValueError, r"\['first'\], want the same",
    lambda s: s.statistics().merge(s.statistics(layers=["first"])))
bad("KeyStatistics.merge", "of another model", "other", ValueError, "other weights upstream",
    lambda s: s.statistics().merge(rw.KeyStatistics.collect(s.model, s.reference)),
    model=models.other)
bad("KeyStatistics.load", "no such file", "path", FileNotFoundError, "no file '.*absent",
    lambda s: rw.KeyStatistics.load(s.folder / "absent.safetensors"))
bad("KeyStatistics.load", "a text file", "path", ValueError, "is not a safetensors file",
    lambda s: rw.KeyStatistics.load(text_file(s)))
bad("KeyStatistics.load", "a file of edits", "path", ValueError, "holds no key statistics",
    lambda s: rw.KeyStatistics.load(edits_file(s)))
bad("KeyStatistics.load", "a file with a part missing", "path", ValueError,
    "damaged key statistics",
    lambda s: rw.KeyStatistics.load(
        forged_file(s, {"format": "rectify_widgets.key_statistics.1", "layers": '{"a": {}}'})
    ))

# --- editable_layers -----------------------------------------------------------------------------

bad("editable_layers", "a dict instead of a module", "model", TypeError, "got dict, want a torch",
    lambda s: rw.editable_layers({}))  # type: ignore[arg-type]
bad("editable_layers", "a list as example", "example", TypeError, "got list, want",
    lambda s: rw.editable_layers(s.model, s.given), given=lambda s: [1.0])
bad("editable_layers", "a layer by a wrong name", "layer", ValueError, "did you mean 'first'",
    lambda s: rw.editable_layers(s.model)["fisrt"])
bad("editable_layers", "a layer by number", "layer", TypeError, "got 0, want the dotted name",
    lambda s: rw.editable_layers(s.model)[0])  # type: ignore[index]

# --- localize ------------------------------------------------------------------------------------

LOCALIZE = "localize"


def _localize(**options: Any) -> Any:
    return lambda s: rw.localize(s.model, s.pairs, **{"reference": s.reference, **options})


bad(LOCALIZE, "a tensor instead of pairs", "pairs", TypeError, "got Tensor, want SamplePairs",
    lambda s: rw.localize(s.model, s.marked, reference=s.reference))  # type: ignore[arg-type]
bad(LOCALIZE, "pairs without batch dimension", "pairs", ValueError,
    r"\(8, 8\) for references of shape \(3, 8, 8\); add the batch dimension",
    lambda s: rw.localize(s.model, s.given, reference=s.reference),
    given=lambda s: rw.SamplePairs(s.marked[0] + 0.1, s.clean[0]))
bad(LOCALIZE, "a reference of another size", "reference", ValueError, r"want \(3, 8, 8\) as in p",
    lambda s: rw.localize(s.model, s.pairs, reference=s.given),
    given=lambda s: s.reference[..., :4])
bad(LOCALIZE, "a label past the last class", "pairs.labels", ValueError, "to 4, want 0 to 3",
    lambda s: rw.localize(s.model, s.given, reference=s.reference),
    given=lambda s: rw.SamplePairs(s.marked, s.clean, labels=[0, 4]))  # type: ignore[arg-type]
bad(LOCALIZE, "unknown method", "method", ValueError, "got 'projektion', .*mean 'projection'",
    _localize(method="projektion"))
bad(LOCALIZE, "None for the method", "method", ValueError, "got None, want one of",
    _localize(method=None))
bad(LOCALIZE, "unknown direction", "directions", ValueError, "got 'contrats', .*mean 'contrast'",
    _localize(directions=["contrats"]))
bad(LOCALIZE, "None for the directions", "directions", TypeError, "got None, want",
    _localize(directions=None))
bad(LOCALIZE, "an empty list of ridges", "ridges", ValueError, "got .*, want at least one",
    _localize(ridges=[]))
bad(LOCALIZE, "a ridge as a word", "ridges", TypeError, "got '0.1', want a number",
    _localize(ridges=["0.1"]))
bad(LOCALIZE, "half a trial", "trials", TypeError, "got 0.5, want a whole number",
    _localize(trials=0.5))
bad(LOCALIZE, "no steps", "steps", ValueError, "got 0, want at least 1",
    _localize(steps=0))
bad(LOCALIZE, "True for the steps", "steps", TypeError, "got True, want a whole number",
    _localize(steps=True))
bad(LOCALIZE, "unknown layer", "layers", ValueError, "no layer 'second.conv'.*editable layers: f",
    _localize(layers=["second.conv"]))
bad(LOCALIZE, "a layer used twice", "layers", ValueError, "'third' cannot .* used 2 times",
    _localize(layers=["third"]), model=models.Twice)
bad(LOCALIZE, "a layer with a shared weight", "layers", ValueError, "shared by head.0.weight and",
    _localize(layers=["head.0"]), model=models.shared)
bad(LOCALIZE, "a layer that is not called", "layers", ValueError, "forward pass does not call it",
    _localize(layers=["spare"]), model=models.Unused)
bad(LOCALIZE, "a parametrised layer", "layers", ValueError, "computed from other parameters",
    _localize(layers=["third"]), model=models.parametrised)
bad(LOCALIZE, "a corruption that reaches no layer", "pairs", ValueError, "reaches none of the lay",
    _localize(), model=models.Blind)
bad(LOCALIZE, "a model on the meta device", "model", ValueError, "meta device, want a model",
    _localize(), model=models.on_meta)
bad(LOCALIZE, "a model half on the meta device", "model", ValueError, "meta device, want a model",
    _localize(), model=models.half_on_meta)
bad(LOCALIZE, "NaN in the last weight", "model", ValueError, "scores are NaN .* finite weights",
    _localize(), model=models.broken("head"))
bad(LOCALIZE, "a model that answers a tuple", "model", TypeError,
    r"is tuple of 2, want .* rw.adapt\(model, output=0\)",
    _localize(), model=lambda: models.Answers(lambda y: (y, y)))
bad(LOCALIZE, "a model that answers a dict", "model", TypeError,
    r"is dict with 'logits', want .* rw.adapt\(model, output=.logits.\)",
    _localize(), model=lambda: models.Answers(lambda y: {"logits": y}))
bad(LOCALIZE, "a model without classes", "model", ValueError, r"\(1, 0\) for 1 .* N × clas",
    _localize(), model=lambda: models.Answers(lambda y: y[:, :0]))
bad(LOCALIZE, "a model that answers a map", "model", ValueError, r"\(1, 4, 2\) for 1 .* N × clas",
    _localize(), model=lambda: models.Answers(lambda y: y[:, :, None].expand(-1, -1, 2)))
bad(LOCALIZE, "several columns as one decision", "task", ValueError, "want one column",
    _localize(), model=lambda: rw.adapt(models.Tiny(), task="binary"))
bad(LOCALIZE, "logits as probabilities", "scores", ValueError, "say scores='logits'",
    _localize(), model=lambda: rw.adapt(
        models.Answers(lambda y: 0 * y + 3), task="multiclass", scores="probabilities"
    ))
bad(LOCALIZE, "a model that loses the batch", "model", ValueError, r"\(4, 1\) for 1 inputs, want",
    _localize(), model=lambda: models.Answers(lambda y: y.T))
bad(LOCALIZE, "progress that is no function", "progress", TypeError, "got int, want a function of",
    _localize(progress=1))
bad(LOCALIZE, "cancel that is no function", "cancel", TypeError, "got bool, want .* is_set",
    _localize(cancel=True))
bad(LOCALIZE, "stale statistics", "statistics", ValueError, "stale for layer .*collect them again",
    lambda s: rw.localize(s.model, s.pairs, reference=s.reference, statistics=s.statistics()),
    model=models.other)
bad(LOCALIZE, "statistics of other layers", "statistics", ValueError, "none for layer 'second'",
    lambda s: rw.localize(
        s.model, s.pairs, statistics=s.statistics(layers=["first"])
    ))
bad(LOCALIZE, "statistics of another key space", "statistics", ValueError, "want 'patch' keys",
    lambda s: rw.localize(
        s.model, s.pairs, statistics=s.statistics(key_space="channel")
    ))
bad(LOCALIZE, "a dict of statistics", "statistics", TypeError, "got dict, want KeyStatistics",
    _localize(statistics={}))

# --- find_corrupted ------------------------------------------------------------------------------

FIND = "find_corrupted"


def _find(**options: Any) -> Any:
    return lambda s: rw.find_corrupted(
        s.model, s.pairs, s.given, **{"reference": s.reference, **options}
    )


bad(FIND, "inputs of another size", "inputs", ValueError, r"\(3, 8, 4\), want \(3, 8, 8\)",
    _find(), given=lambda s: s.reference[..., :4])
bad(FIND, "a list of inputs", "inputs", TypeError, "got list, want a tensor",
    _find(reference=None), given=lambda s: list(s.reference))
bad(FIND, "NaN in the inputs", "inputs", ValueError, "got NaN",
    _find(), given=lambda s: spoiled(s.reference))
bad(FIND, "no inputs", "inputs", ValueError, "got no samples, want at least one",
    _find(), given=lambda s: Samples([]))
bad(FIND, "threshold 2", "threshold", ValueError, "got 2, want a number from 0.0 to 1.0",
    _find(threshold=2), given=lambda s: s.reference)
bad(FIND, "seed 0.5", "seed", TypeError, "got 0.5, want a whole number",
    _find(seed=0.5), given=lambda s: s.reference)
bad(FIND, "a corruption that reaches no layer", "pairs", ValueError, "reaches none of the layers",
    _find(), given=lambda s: s.reference, model=models.Blind)

# --- find_places ---------------------------------------------------------------------------------

PLACES = "find_places"


def _places(**options: Any) -> Any:
    return lambda s: rw.find_places(s.model, s.pairs, **{"reference": s.reference, **options})


bad(PLACES, "a corruption of the whole input", "pairs", ValueError, "takes up 100% .* want a patch",
    lambda s: rw.find_places(s.model, rw.SamplePairs(s.clean + 0.1, s.clean)))
bad(PLACES, "samples that are no images", "pairs", ValueError, "want images C × H × W",
    lambda s: rw.find_places(
        s.model, rw.SamplePairs(s.marked.flatten(1), s.clean.flatten(1))
    ))
bad(PLACES, "no pairs", "pairs", TypeError, "got Tensor, want SamplePairs",
    lambda s: rw.find_places(s.model, s.marked))  # type: ignore[arg-type]
bad(PLACES, "half a reference", "samples", TypeError, "got 0.5, want a whole number",
    _places(samples=0.5))
bad(PLACES, "a share of 30", "least", ValueError, "got 30, want a number from 0.0 to 1.0",
    _places(least=30))

# --- evaluate ------------------------------------------------------------------------------------

EVALUATE = "evaluate"


def _evaluate(**options: Any) -> Any:
    return lambda s: rw.evaluate(s.model, (s.reference, s.labels), **options)


bad(EVALUATE, "inputs without labels", "clean", TypeError, "got Tensor, want a pair",
    lambda s: rw.evaluate(s.model, s.reference))  # type: ignore[arg-type]
bad(EVALUATE, "too few labels", "clean[1]", ValueError, r"\(3,\), want \(16,\)",
    lambda s: rw.evaluate(s.model, (s.reference, s.labels[:3])))
bad(EVALUATE, "a label past the last class", "clean[1]", ValueError, "to 7, want 0 to 3",
    lambda s: rw.evaluate(s.model, (s.reference, s.labels + 4)))
bad(EVALUATE, "NaN in the inputs", "clean[0]", ValueError, "got NaN",
    lambda s: rw.evaluate(s.model, (s.given, s.labels)),
    given=lambda s: spoiled(s.reference))
bad(EVALUATE, "corrupted inputs of another size", "corrupted[0]", ValueError, r"want \(3, 8, 8\)",
    lambda s: rw.evaluate(
        s.model, (s.reference, s.labels), (s.reference[..., :4], s.labels)
    ))
bad(EVALUATE, "wrong labels of the corrupted inputs", "corrupted[1]", ValueError, "want 0 to 3",
    lambda s: rw.evaluate(
        s.model, (s.reference, s.labels), (s.reference, s.labels + 1)
    ))
bad(EVALUATE, "a target past the last class", "target", ValueError, "got 4, want a class from 0",
    _evaluate(target=4))
bad(EVALUATE, "a target by name", "target", TypeError, "got 'cat', want a whole number",
    _evaluate(target="cat"))
bad(EVALUATE, "only inputs of the target class", "corrupted", ValueError, "want other classes too",
    lambda s: rw.evaluate(
        s.model, (s.reference, s.labels), (s.reference, torch.zeros(16, dtype=torch.long)), 0
    ))
bad(EVALUATE, "confidence 2", "confidence", ValueError, "got 2, want a number from 0.5",
    _evaluate(confidence=2))
bad(EVALUATE, "batch size 2.5", "batch_size", TypeError, "got 2.5, want a whole number",
    _evaluate(batch_size=2.5))
bad(EVALUATE, "NaN in a weight", "model", ValueError, "scores are NaN",
    _evaluate(), model=models.broken("second"))
bad(EVALUATE, "a seed that is a word", "seed", TypeError, "got 'x', want a whole number",
    _evaluate(confidence=0.9, seed="x"))
bad(EVALUATE, "a model that is a class", "model", TypeError, "got type, want a torch",
    _evaluate(), model=lambda: nn.Linear)
bad(EVALUATE, "too few groups", "groups", ValueError, "got 3 values, want 16, one for each clean",
    _evaluate(groups=["a", "b", "a"]))
bad(EVALUATE, "groups that are a word", "groups", TypeError, "got str, want a value for each input",
    _evaluate(groups="abcdefghijklmnop"))
bad(EVALUATE, "a group that is NaN", "groups", ValueError, "got nan at 15, want a group",
    _evaluate(groups=[0.0] * 15 + [float("nan")]))
bad(EVALUATE, "a group that is a list", "groups['sex']", TypeError, "got list at 0, want hashable",
    _evaluate(groups={"sex": [[]] * 16}))
bad(EVALUATE, "groups in two dimensions", "groups", ValueError, r"got shape \(4, 4\), want",
    _evaluate(groups=torch.zeros(4, 4)))
bad(EVALUATE, "no attribute", "groups", ValueError, "got no attribute",
    _evaluate(groups={}))
bad(EVALUATE, "figures of before as a number", "before", TypeError, "got float, want a Report",
    _evaluate(groups=[1] * 16, before=0.9))
bad(EVALUATE, "before without groups", "before", ValueError, "this call has no groups",
    lambda s: rw.evaluate(
        s.model, (s.reference, s.labels),
        before=rw.evaluate(s.model, (s.reference, s.labels), groups=[1] * 16),
    ))
