"""Models that answer with something else than scores, and `adapt`.

What an adapted model gives is compared with what the same network gives that answers plainly.
"""

from __future__ import annotations

import ast
import copy
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.engine.model.outputs import Adapted
from rectify_widgets.engine.model.running import eval_mode, unwrap
from tests.engine.bad_models import Answers
from tests.engine.calls import CALLS, INPUTS, PAIRS, REFERENCE, comparable
from tests.engine.traces import Tiny, images, untouched

# --- answers -------------------------------------------------------------------------------------


@dataclass
class Answer:
    """An object with the scores among other things."""

    loss: Tensor | None
    logits: Tensor


@dataclass
class Slotted:
    """Has no ``__dict__``."""

    __slots__ = ("features", "scores")
    features: Tensor
    scores: Tensor


class Named(NamedTuple):
    """As torchvision's GoogLeNet answers in training."""

    aux: Tensor
    logits: Tensor


class Computed:
    """Its scores are a property."""

    def __init__(self, scores: Tensor) -> None:
        self._scores = scores

    @property
    def scores(self) -> Tensor:
        return self._scores


class ModelOutput(OrderedDict[str, Any]):
    """As transformers answers: a dictionary and an object in one; a number indexes its values."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, place: Any) -> Any:
        return super().__getitem__(place) if isinstance(place, str) else tuple(self.values())[place]


def hidden(y: Tensor) -> Tensor:
    """Features: as many samples, more dimensions."""
    return y[:, :, None].expand(-1, -1, 3)


ANSWERS: dict[str, tuple[Callable[[Tensor], Any], str | int]] = {
    "dict": (lambda y: {"loss": y.sum(), "features": hidden(y), "logits": y}, "logits"),
    "dict of another name": (lambda y: {"features": hidden(y), "out": y}, "out"),
    "transformers": (lambda y: ModelOutput(loss=y.sum(), logits=y, extra=y + 1), "logits"),
    "object": (lambda y: Answer(None, y), "logits"),
    "object with slots": (lambda y: Slotted(hidden(y), y), "scores"),
    "named tuple": (lambda y: Named(hidden(y), y), "logits"),
    "tuple": (lambda y: (hidden(y), y), 1),
    "list": (lambda y: [y, y[:, :1]], 0),
}


def answers(kind: str) -> Answers:
    return Answers(ANSWERS[kind][0])


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_error_names_the_call_that_helps(kind: str) -> None:
    model = answers(kind)
    with pytest.raises(TypeError, match=r"^model: its output is ") as raised:
        rw.evaluate(model, (images(3), torch.zeros(3, dtype=torch.long)))
    (reported,) = re.findall(r"rw\.adapt\(model, output=(.*)\)$", str(raised.value))
    assert ast.literal_eval(reported) == ANSWERS[kind][1]
    adapted = rw.adapt(model, output=ast.literal_eval(reported))
    assert torch.equal(adapted(images(3)), Tiny()(images(3)))


def test_the_error_where_nothing_looks_like_scores() -> None:
    for change, words in (
        (lambda y: "seven", r"its output is str, want .* rw.adapt\(model, output=f\), where"),
        (hidden, r"shape \(1, 4, 3\)"),
        (lambda y: {"boxes": hidden(y), 3: y[:, :1, None]}, r"dict with 'boxes', 3, .*output=f\)"),
        (lambda y: (), r"tuple of 0, .*output=f\)"),
        (lambda y: None, r"NoneType, .*output=f\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            rw.editable_layers(Answers(change), REFERENCE)


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Any]] = {
    "function": (lambda y: {"a": [y]}, lambda answer: answer["a"][0]),
    "module": (lambda y: y[:, :, None, None], nn.Flatten()),
    "last of a tuple": (lambda y: (hidden(y), y), -1),
    "named tuple by position": (lambda y: Named(hidden(y), y), 1),
    "property": (Computed, "scores"),
    "number as key": (lambda y: {7: y}, 7),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_other_ways_to_say_where_the_scores_are(kind: str) -> None:
    change, output = OUTPUTS[kind]
    adapted = rw.adapt(Answers(change), output=output)
    assert torch.equal(adapted(images(3)), Tiny()(images(3)))
    assert list(rw.editable_layers(adapted, REFERENCE).editable) == LAYERS


LAYERS = ["first", "second", "third", "head"]

WRONG: dict[str, tuple[Callable[[Tensor], Any], Any, type[Exception], str]] = {
    "near": (lambda y: {"logits": y}, "logit", ValueError, "mean 'logits'.*dict with 'logits'"),
    "no attribute": (lambda y: Answer(None, y), "score", ValueError, "Answer with 'loss', 'logi"),
    "past the end": (lambda y: (y, y), 2, ValueError, "got 2, .* tuple of 2; name one"),
    "before the start": (lambda y: (y, y), -3, ValueError, "got -3"),
    "position in a dict": (lambda y: {"logits": y}, 0, ValueError, "dict with 'logits'"),
    "key of a tuple": (lambda y: (y, y), "logits", ValueError, "tuple of 2"),
    "scores already": (lambda y: y, "T", ValueError, "hand it over without adapt"),
    "row of scores": (lambda y: y, 0, ValueError, r"is a tensor of shape \(1, 4\); hand it over"),
    "no tensor": (lambda y: {"logits": [y]}, "logits", TypeError, "answer is list of 1, want"),
    "function of no tensor": (lambda y: y, lambda y: None, TypeError, "NoneType, want a tensor"),
    "not scores": (lambda y: (y, hidden(y)), 1, ValueError, r"model: .* \(1, 4, 3\)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_place_is_told_with_what_there_is(kind: str) -> None:
    change, output, error, words = WRONG[kind]
    model = Answers(change)
    with untouched(model, REFERENCE), pytest.raises(error, match=words):
        rw.localize(rw.adapt(model, output=output), PAIRS, reference=REFERENCE)


@pytest.mark.parametrize("output", [None, True, 1.0, b"logits", ["logits"]])
def test_other_kinds_of_output_are_refused(output: Any) -> None:
    with pytest.raises(TypeError, match=r"output: got .*, want a str"):
        rw.adapt(Tiny(), output=output)


def test_what_cannot_be_adapted() -> None:
    with pytest.raises(TypeError, match="model: got function"):
        rw.adapt(hidden, output=0)  # type: ignore[arg-type]
    for model in (adapted(), nn.DataParallel(adapted())):
        with pytest.raises(ValueError, match="model: it is adapted already"):
            rw.adapt(model, output=0)


class Featured(nn.Module):
    """Answers with its features, flattened or not, and the logits of its last layer."""

    def __init__(self, classes: int, *, first: bool) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1)
        self.flat, self.last = nn.Flatten(), nn.Linear(6, classes)
        self.first = first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.flat(self.pool(self.conv(x).relu()))
        logits = self.last(features)
        return (features, logits) if self.first else (logits, features)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("classes", [1, 4, 20])
def test_of_features_and_logits_the_logits_are_named(classes: int, *, first: bool) -> None:
    model = Featured(classes, first=first)
    with pytest.raises(TypeError, match=rf"rw\.adapt\(model, output={int(first)}\)$"):
        rw.evaluate(model, (images(3)[:, :1], torch.zeros(3, dtype=torch.long)))


# --- the same as the plain model -----------------------------------------------------------------


def adapted(kind: str = "dict") -> Adapted:
    return rw.adapt(answers(kind), output=ANSWERS[kind][1])


def compiled(model: nn.Module) -> nn.Module:
    return cast("nn.Module", torch.compile(model, backend="eager"))


def compiled_in_place() -> nn.Module:
    model = answers("dict")
    model.compile(backend="eager")
    return rw.adapt(model, output="logits")


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "adapted": adapted,
    "compiled": lambda: compiled(adapted()),
    "of a compiled": lambda: rw.adapt(compiled(answers("tuple")), output=1),
    "compiled in place": compiled_in_place,
    "parallel": lambda: nn.DataParallel(adapted()),
    "of a parallel": lambda: rw.adapt(nn.DataParallel(answers("object")), output="logits"),
    "both sides": lambda: compiled(
        nn.DataParallel(rw.adapt(nn.DataParallel(compiled(answers("dict"))), output="logits"))
    ),
}


@pytest.mark.parametrize("wrap", ["adapted", "both sides"])
@pytest.mark.parametrize("call", CALLS)
def test_every_call_gives_what_it_gives_for_the_plain_model(call: str, wrap: str) -> None:
    assert comparable(CALLS[call](WRAPPED[wrap]())) == comparable(CALLS[call](Tiny()))


def test_layers_are_those_of_the_model_itself() -> None:
    for wrap in WRAPPED.values():
        model = wrap()
        catalog = rw.editable_layers(model, REFERENCE)
        assert list(catalog.editable) == LAYERS
        assert catalog["head"].module is unwrap(model).head
        assert list(rw.editable_layers(model).editable) == LAYERS


def test_statistics_of_the_plain_model_serve_the_adapted_one(tmp_path: Path) -> None:
    model = answers("dict")
    statistics = rw.KeyStatistics.collect(Tiny(), REFERENCE)
    adapter = rw.adapt(model, output="logits")
    rw.localize(adapter, PAIRS, reference=REFERENCE, statistics=statistics)
    with torch.no_grad():
        model.first.weight.mul_(2)
    with pytest.raises(ValueError, match="stale for layer 'second'"):
        rw.localize(adapter, PAIRS, reference=REFERENCE, statistics=statistics)


# --- edits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", WRAPPED)
def test_saved_edits_fit_the_model_itself_and_the_adapted_one(wrap: str, tmp_path: Path) -> None:
    model = WRAPPED[wrap]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = CALLS["rectify"](model)
    assert len(result.edits) >= 1
    assert isinstance(result.model, Adapted)
    assert type(result.model.module) is Answers
    assert torch.equal(result.model(REFERENCE), CALLS["rectify"](Tiny()).model(REFERENCE))
    result.save(tmp_path / "fix.safetensors")
    for other in (model, unwrap(model), Tiny(), adapted("object")):
        edits = rw.load_edits(tmp_path / "fix.safetensors")
        edits.apply(other)
        edited = unwrap(other).state_dict()
        assert all(
            torch.equal(edited[name], t) for name, t in unwrap(result.model).state_dict().items()
        )
        edits.revert(other)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_edits_go_in_order_whichever_way_the_model_is_wrapped() -> None:
    model = answers("dict")
    adapter = rw.adapt(model, output="logits")
    first = rw.solve_edit(adapter, PAIRS, reference=REFERENCE, layer="second")
    first.apply(adapter)
    assert first.is_applied(model)
    second = rw.solve_edit(adapter, PAIRS, reference=REFERENCE, layer="head")
    second.apply(model)
    with pytest.raises(ValueError, match="edit of layer 'head' was applied after"):
        first.revert(adapter)
    second.revert(adapter)
    first.revert(model)
    assert torch.equal(adapter(REFERENCE), Tiny()(REFERENCE))


# --- the adapter as a module ---------------------------------------------------------------------


def test_it_shares_its_weights_and_a_copy_does_not() -> None:
    model = answers("dict").train()
    adapter = rw.adapt(model, output="logits")
    assert adapter.module is model
    assert adapter.training
    twin = copy.deepcopy(adapter)
    assert {p.data_ptr() for p in adapter.parameters()} == {
        p.data_ptr() for p in model.parameters()
    }
    assert not {p.data_ptr() for p in twin.parameters()} & {
        p.data_ptr() for p in model.parameters()
    }
    assert torch.equal(twin.eval()(REFERENCE), adapter.eval()(REFERENCE))
    assert not model.training
    assert not twin.module.training
    adapter.double()
    assert model.head.weight.dtype is torch.float64
    assert "output='logits'" in repr(adapter)


def test_the_state_is_that_of_the_model_under_its_own_name() -> None:
    adapter = adapted()
    state = {f"module.{name}": tensor for name, tensor in Tiny(seed=3).state_dict().items()}
    adapter.load_state_dict(state)
    assert torch.equal(adapter(REFERENCE), Tiny(seed=3)(REFERENCE))
    assert list(adapter.state_dict()) == list(state)


def test_keyword_arguments_reach_the_model() -> None:
    class Keyed(Tiny):
        def forward(self, x: Tensor, *, scale: float = 1.0) -> Any:
            return (scale * super().forward(x),)

    adapter = rw.adapt(Keyed(), output=0)
    assert torch.equal(adapter(REFERENCE, scale=2.0), 2 * Tiny()(REFERENCE))


def test_an_adapter_inside_a_users_own_module() -> None:
    model = nn.Sequential(nn.Identity(), adapted())
    names = list(rw.editable_layers(model, REFERENCE).editable)
    assert names == [f"1.module.{name}" for name in LAYERS]


def test_two_threads_do_not_look_at_a_model_and_its_adapter_at_a_time() -> None:
    model = answers("dict")
    wrapped = [rw.adapt(model, output="logits"), compiled(rw.adapt(model, output="logits"))]
    for other in (*wrapped, model):
        inside, looked = threading.Event(), threading.Event()

        def look(other: nn.Module = other, looked: threading.Event = looked) -> None:
            inside.wait()  # noqa: B023 - joined below
            with eval_mode(other):
                looked.set()

        thread = threading.Thread(target=look)
        thread.start()
        with eval_mode(wrapped[0]):
            inside.set()
            assert not looked.wait(0.05)
        thread.join()
        assert looked.is_set()


@pytest.mark.parametrize("wrap", WRAPPED)
def test_it_leaves_no_trace(wrap: str) -> None:
    model = WRAPPED[wrap]()
    unwrap(model).train()
    with untouched(model, *INPUTS):
        CALLS["rectify"](model)
