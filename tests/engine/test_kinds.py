"""Kinds of models that other tools trip over: each gives what its plain twin gives, or the reason.

The oracle is the same network with the same weights, written in the plain way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils import prune

import rectify_widgets as rw
from rectify_widgets.engine.model.running import eval_mode, predict
from tests.engine.calls import CALLS, PAIRS, REFERENCE
from tests.engine.traces import Experts, Tiny, corrupted, images, untouched

METHODS = ("edit-attribution", "projection", "trial")


class Probe(nn.Module):
    """A backbone and a head on it, which is all that is trained; ``wrap`` keeps gradients from it."""

    wrap: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.head.bias[0] -= 4  # a score below 0, so that they are not taken for probabilities

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x).relu()).relu().amax((2, 3))
        return found

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(type(self).wrap(self.features, x))
        return scores


def plain(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return features(x)


def without_gradients(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return features(x)


def switched_off(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.set_grad_enabled(mode=False):
        return features(x)


def detached(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return features(x).detach()


def data_of(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return features(x).data


def in_inference_mode(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.inference_mode():
        return features(x)


def probe(wrap: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> Probe:
    kind: type[Probe] = type("Wrapped", (Probe,), {"wrap": staticmethod(wrap)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return kind().eval()


STOPPING = (without_gradients, switched_off, detached, data_of)


@pytest.mark.parametrize("wrap", STOPPING, ids=lambda one: one.__name__)
@pytest.mark.parametrize("method", METHODS)
def test_a_backbone_without_gradients_is_ranked_like_one_with_them(
    wrap: Callable[..., Tensor], method: str
) -> None:
    model, twin = probe(wrap), probe(plain)
    with untouched(model):
        found = rw.localize(model, PAIRS, reference=REFERENCE, method=method)
    wanted = rw.localize(twin, PAIRS, reference=REFERENCE, method=method)
    assert found.scores == pytest.approx(dict(wanted.scores))
    assert any(abs(found.scores[name]) > 1e-3 for name in ("first", "second"))


@pytest.mark.parametrize("wrap", STOPPING, ids=lambda one: one.__name__)
def test_maps_of_a_backbone_without_gradients(wrap: Callable[..., Tensor]) -> None:
    for options in ({"method": "saliency"}, {"method": "grad-cam", "layer": "first"}):
        found = rw.attribute(probe(wrap), REFERENCE, **options)  # type: ignore[arg-type]
        wanted = rw.attribute(probe(plain), REFERENCE, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(found, wanted)
        assert float(found.abs().max()) > 0


def test_a_whole_forward_without_gradients_is_repaired() -> None:
    class Whole(Probe):
        wrap = staticmethod(plain)

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model, twin = Whole(), probe(plain)
    model.load_state_dict(twin.state_dict())
    options: dict[str, Any] = {"reference": images(64), "strategy": "static", "layer": "first"}
    found, wanted = (rw.rectify(one, PAIRS, **options) for one in (model, twin))
    assert found.gap_after == pytest.approx(wanted.gap_after)
    assert [edit.layer for edit in found.edits] == [edit.layer for edit in wanted.edits]


def test_a_backbone_in_inference_mode_is_refused_with_the_reason() -> None:
    model = probe(in_inference_mode)
    with untouched(model):
        found = rw.localize(model, PAIRS, reference=REFERENCE)
        assert set(found.scores) == {"head"}
        assert set(found.refused) == {"first", "second"}
        assert all("torch.inference_mode()" in why for why in found.refused.values())
        with pytest.raises(ValueError, match=r"'first' cannot be edited: .*torch.no_grad\(\)"):
            rw.solve_edit(model, PAIRS, reference=REFERENCE, layer="first")
        with pytest.raises(ValueError, match=r"model: no gradient .* to the inputs: .*occlusion"):
            rw.attribute(model, REFERENCE)
        assert rw.attribute(model, REFERENCE[:1], method="occlusion").abs().max() > 0


def test_a_straight_through_estimate_keeps_its_gradient() -> None:
    # A model that detaches a part on purpose and loses no gradient is run as it is.
    class Rounded(Probe):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + ((x * 8).round() / 8 - x).detach())

    class Exact(Probe):
        def forward(self, x: Tensor) -> Tensor:
            class Through(torch.autograd.Function):
                @staticmethod
                def forward(_: Any, x: Tensor) -> Tensor:
                    return (x * 8).round() / 8

                @staticmethod
                def backward(_: Any, gradient: Tensor) -> Tensor:
                    return gradient

            return super().forward(Through.apply(x))  # type: ignore[no-untyped-call]

    maps = []
    for kind in (Rounded, Exact):
        kind.wrap = staticmethod(plain)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            maps.append(rw.attribute(kind(), REFERENCE, method="saliency"))
    torch.testing.assert_close(*maps)


@pytest.mark.filterwarnings("ignore:torch.ao:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:quantized..linear_dynamic. an autograd kernel:UserWarning")
def test_a_dynamic_int8_head_is_named_where_the_gradient_ends() -> None:
    model = quantization.quantize_dynamic(probe(plain), {nn.Linear})
    with pytest.raises(ValueError, match=r"first: no gradient .* it ends at 'head' \(Linear\)"):
        rw.localize(model, PAIRS, reference=REFERENCE)
    with pytest.raises(ValueError, match=r"model: no gradient .* it ends at 'head' \(Linear\)"):
        rw.attribute(model, REFERENCE)
    assert rw.evaluate(model, (REFERENCE, torch.zeros(8, dtype=torch.long))).samples == (8, 0)


def test_a_layer_that_the_scores_ignore_is_refused() -> None:
    class Spare(Probe):
        def forward(self, x: Tensor) -> Tensor:
            self.second(self.first(x))
            scores: Tensor = self.head(torch.cat([x, x, x], 1)[:, :8].mean((2, 3)))
            return scores

    found = rw.localize(Spare(), PAIRS, reference=REFERENCE)
    assert set(found.scores) == {"head"}
    assert all(why.endswith("they do not depend on it") for why in found.refused.values())


@pytest.mark.parametrize("make", ["trace", "script"])
def test_torchscript_is_refused_by_name(make: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        model = (
            torch.jit.trace(network, REFERENCE) if make == "trace" else torch.jit.script(network)
        )
    for name, call in CALLS.items():
        if name != "Transplant":
            with pytest.raises(ValueError, match="model: it is a TorchScript module"):
                call(model)
    with pytest.raises(ValueError, match="model: it is a TorchScript module"):
        rw.attribute(model, REFERENCE)


def test_classes_ruled_out_with_infinite_scores() -> None:
    class Masked(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            scores[:, 3] = -torch.inf
            return scores

    class Low(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            scores[:, 3] = -80.0
            return scores

    found, wanted = (rw.rectify(kind(), PAIRS, reference=images(64)) for kind in (Masked, Low))
    assert found.gap_after == pytest.approx(wanted.gap_after, abs=1e-4)
    assert [edit.layer for edit in found.edits] == [edit.layer for edit in wanted.edits]


@pytest.mark.filterwarnings("ignore::FutureWarning:torch")
@pytest.mark.parametrize("kind", ["pruned", "weight norm", "spectral norm", "kept activation"])
def test_computed_weights_right_after_training_are_copied(kind: str) -> None:
    model: Any = Tiny()
    if kind == "pruned":
        prune.l1_unstructured(model.first, "weight", 0.3)
    elif kind == "weight norm":
        nn.utils.weight_norm(model.first)
    elif kind == "spectral norm":
        nn.utils.spectral_norm(model.first)
    else:
        model.register_forward_hook(lambda one, _, output: one.__dict__.update(last=output))
    model.train()(REFERENCE).sum().backward()
    with untouched(model):
        first = rw.rectify(model, PAIRS, reference=REFERENCE)
        rw.attribute(model, REFERENCE)
        again = rw.rectify(model, PAIRS, reference=REFERENCE)
    assert again.gap_after == first.gap_after
    torch.testing.assert_close(first.model.eval()(REFERENCE), again.model.eval()(REFERENCE))
    assert [part.layer for part in first.edits] == [part.layer for part in again.edits]


def test_weights_made_in_inference_mode_are_edited() -> None:
    with torch.inference_mode():
        model = Tiny()
    twin = Tiny()
    found, wanted = (rw.rectify(one, PAIRS, reference=images(64)) for one in (model, twin))
    assert found.edits
    assert [step.gap_after for step in found.steps] == [step.gap_after for step in wanted.steps]
    before = {name: one.clone() for name, one in model.state_dict().items()}
    edits = rw.Edits(found.edits)
    edits.apply(model)
    with torch.inference_mode():
        assert torch.equal(model(REFERENCE), found.model(REFERENCE))
    edits.revert(model)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


@pytest.mark.parametrize("name", [name for name in CALLS if name != "Transplant"])
def test_a_model_on_meta_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="meta device"):
        CALLS[name](Tiny().to("meta"))


# --- data-dependent flow -------------------------------------------------------------------------


def routed(values: list[float]) -> rw.SamplePairs:
    clean = images(len(values), seed=5)
    clean[:, 0, 7, 7] = torch.tensor(values)
    return rw.SamplePairs(corrupted(clean), clean)


@pytest.mark.parametrize("values", [[0.1, 0.9], [0.1, 0.2], [0.9, 0.8], [0.1]])
@pytest.mark.parametrize("method", METHODS)
def test_experts_are_refused_and_the_rest_is_ranked(values: list[float], method: str) -> None:
    model, reference = Experts(), images(16)
    with untouched(model):
        found = rw.localize(model, routed(values), reference=reference, method=method)
    assert set(found.scores) == {"stem", "head"}
    assert set(found.refused) == {"experts.0", "experts.1"}
    assert all("mixture of experts" in why or "no sample" in why or "not call" in why
               for why in found.refused.values())  # fmt: skip
    result = rw.rectify(model, routed(values), reference=reference)
    assert {step.layer for step in result.steps} <= {"stem", "head"}


def test_statistics_of_experts_are_refused_with_the_reason() -> None:
    reference = images(16)
    reference[:2, 0, 7, 7] = 0.1
    with pytest.raises(ValueError, match=r"'experts.0' cannot be edited: .*mixture of experts"):
        rw.KeyStatistics.collect(Experts(), reference)
    found = rw.KeyStatistics.collect(Experts(), reference, layers=["stem", "head"])
    assert list(found) == ["stem", "head"]


def test_layers_called_by_keyword_are_like_others() -> None:
    class Keywords(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            x = self.activation(self.norm(self.first(input=x)))
            x = self.activation(self.second(input=x))
            x = self.pool(self.activation(self.third(input=x))).flatten(1)
            scores: Tensor = self.head(input=x)
            return scores

    for name in ("collect", "localize", "rectify", "solve_edit"):
        found, wanted = CALLS[name](Keywords()), CALLS[name](Tiny())
        if name == "localize":
            assert found.scores == wanted.scores
        elif name == "collect":
            assert all(torch.equal(found[key].total, wanted[key].total) for key in wanted)
        elif name == "rectify":
            assert [step.gap_after for step in found.steps] == [
                step.gap_after for step in wanted.steps
            ]
        else:
            assert torch.equal(found.delta, wanted.delta)


# --- state ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.ao:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:must run observer:UserWarning")
@pytest.mark.filterwarnings("ignore:Please use quant_min:UserWarning")
def test_quantisation_aware_models_keep_their_observers() -> None:
    model: Any = nn.Sequential(
        quantization.QuantStub(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.2)
        model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        model = quantization.prepare_qat(model.train())
        model(images(4))
    reference, pairs = 3 * REFERENCE, rw.SamplePairs(3 * PAIRS.corrupted, 3 * PAIRS.clean)
    state = copy.deepcopy(model.state_dict())
    with untouched(model):
        rw.evaluate(model, (reference, torch.zeros(8, dtype=torch.long)))
        rw.attribute(model, reference)
        with pytest.raises(ValueError, match="1: its output is not W k"):
            rw.localize(model, pairs, reference=reference)
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
    with eval_mode(model) as module:  # every pass starts from the same observers
        scores = [predict(module, reference[:count]) for count in (8, 3, 8)]
        assert torch.equal(scores[0], scores[2])
    model.eval()(reference)  # what has been guarded against
    assert not all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
