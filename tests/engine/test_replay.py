"""Trials that go on from what runs before the edited layer, against running the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.base.progress import SILENT, Cancelled, Monitor
from rectify_widgets.engine.measure.judge import Judge
from rectify_widgets.engine.measure.replay import Replay
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.running import eval_mode, predict_all
from tests.engine.building_blocks import BLOCKS
from tests.engine.models import NETWORKS, images, make


class Counted(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.clone()


class Awkward(nn.Module):
    """One ReLU for all, tuples between modules, and tensors changed in place behind their maker."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pair = Pair()
        self.count = Counted()
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.first(self.count(x)))
        z = self.second(y)
        z += y  # in place, on what a module answered
        functional.relu_(z)
        more, less = self.pair(z)
        y = self.relu(self.third(more))
        y = y - less.mul_(2.0)
        scores: Tensor = self.head(self.relu(y).mean(dim=(2, 3)))
        return scores


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x - 1


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, training=True)


class Noisy(nn.Module):
    """Draws random numbers before and behind a layer: who leaves out the first gets others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(243, 8), nn.Linear(8, 4)
        self.noise = Draws()

    def forward(self, x: Tensor) -> Tensor:
        y = self.noise(functional.relu(self.first(x.flatten(1))))
        scores: Tensor = functional.dropout(self.second(y), 0.5, training=True)
        return scores


ALL = {
    **NETWORKS,
    **{name: block.build for name, block in BLOCKS.items()},
    "awkward": Awkward,
    "noisy": Noisy,
}


@contextmanager
def edited(module: nn.Module) -> Iterator[None]:
    weight: Tensor = module.weight  # type: ignore[assignment]
    before = weight.data
    weight.data = before * 1.5 + 0.01
    try:
        yield
    finally:
        weight.data = before


def scores(replay: Replay, model: nn.Module, edited: str, monitor: Monitor = SILENT) -> Tensor:
    """What a replay gives in batches."""
    return torch.cat(list(replay.batches(model, "", edited, monitor)))


def sample_of(model: nn.Module, count: int) -> Tensor:
    """Inputs that the network takes."""
    for size in (9, 12, 16):
        for channels in (3, 1):
            x = images(count, channels=channels, size=size)
            try:
                with torch.no_grad():
                    model(x.clone())
            except (RuntimeError, ValueError, AssertionError):
                continue
            return x
    raise AssertionError("no input fits")


@pytest.mark.parametrize("network", ALL)
def test_scores_are_those_of_the_whole_model_to_the_bit(network: str) -> None:
    model = make(ALL[network])
    x = sample_of(model, 5)
    with eval_mode(model) as module:
        layers = list(editable_layers(module, x))
        replay = Replay(module, {"": x}, layers, monitor=Monitor())
        for layer in layers:
            with edited(layer.module):
                assert torch.equal(scores(replay, module, layer.name), predict_all(module, x))
        assert torch.equal(scores(replay, module, "unknown"), predict_all(module, x))
    assert not any("forward" in part.__dict__ for part in model.modules())


def test_what_runs_before_the_layer_is_not_run_again() -> None:
    model = make(Awkward)
    x = images(4)
    with eval_mode(model) as module:
        layers = list(editable_layers(module, x))
        replay = Replay(module, {"": x}, layers, monitor=Monitor())
        model.count.calls = 0  # type: ignore[union-attr]
        for layer in layers[1:]:
            scores(replay, module, layer.name)
        assert model.count.calls == 0  # type: ignore[union-attr]
        scores(replay, module, layers[0].name)
        assert model.count.calls == 0  # type: ignore[union-attr]
        scores(Replay(module, {"": x}, layers, room=0, monitor=Monitor()), module, "third")
        assert model.count.calls > 0  # type: ignore[union-attr]


def test_without_layers_nothing_is_looked_at() -> None:
    model = make(Awkward)
    x = images(4)
    with eval_mode(model) as module:
        replay = Replay(module, {"": x}, [], monitor=Monitor())
        assert model.count.calls == 0  # type: ignore[union-attr]
        assert torch.equal(scores(replay, module, "third"), predict_all(module, x))


class Zeros(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_a_model_that_draws_random_numbers_is_run_whole() -> None:
    """Also where what it draws does not show."""
    model = make(
        lambda: nn.Sequential(Counted(), Draws(), Zeros(), nn.Flatten(), nn.Linear(243, 4))
    )
    with eval_mode(model) as module:
        x = images(4, size=9)
        replay = Replay(module, {"": x}, list(editable_layers(module, x)), monitor=Monitor())
        model[0].calls = 0  # type: ignore[index]
        scores(replay, module, "4")
        assert model[0].calls > 0  # type: ignore[index]


def test_only_what_is_looked_at_is_kept() -> None:
    """Of a chain of modules the last one's answer is all that the layer behind it needs."""
    model = make(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3), nn.Flatten(), nn.Linear(50, 4)
        )
    )
    x = images(4)
    with eval_mode(model) as module:
        last = list(editable_layers(module, x))[-1:]
        replay = Replay(module, {"": x}, last, monitor=Monitor())
    (kept,) = replay._kept[""]
    # The stand-in runs through the layer itself: only its direct input is real.
    assert [tuple(answer.shape) for answer in kept.values()] == [(4, 50)]


def test_chunks_beyond_the_room_are_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rectify_widgets.engine.measure.replay.chunk_size", lambda *_: 2)
    model = make(Awkward)
    x = images(7)
    with eval_mode(model) as module:
        layers = list(editable_layers(module, x))
        whole = Replay(module, {"": x}, layers, monitor=Monitor())
        one = sum(a.nbytes for a in whole._kept[""][0].values() if isinstance(a, Tensor))
        assert len(whole._kept[""]) == 4
        some = Replay(module, {"": x}, layers, room=3 * one, monitor=Monitor())
        assert 0 < len(some._kept[""]) < 4
        with edited(layers[2].module):
            assert torch.equal(scores(some, module, "third"), scores(whole, module, "third"))


class Block(nn.Module):
    """Keeps what it gets until its end, and widens it eightfold in between."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.back(self.wide(x))
        return x + y


def test_where_not_all_fits_a_replay_begins_at_the_block() -> None:
    """What is kept of the layer within the block is nine times its input."""
    model = make(lambda: nn.Sequential(*(Block() for _ in range(10)), Counted(), nn.Flatten()))
    x = images(4, size=6)
    with eval_mode(model) as module:
        layers = {layer.name: layer for layer in editable_layers(module, x)}
        whole = predict_all(module, x)
        some = [layers["9.back"]]
        one = x.nbytes
        finest = Replay(module, {"": x}, some, room=9 * one, monitor=Monitor())
        coarse = Replay(module, {"": x}, some, room=9 * one - 1, monitor=Monitor())
        kept = [sorted(answer.shape[1] for answer in replay._kept[""][0].values())
                for replay in (finest, coarse)]  # fmt: skip
        assert kept == [[3, 24], [3]]
        for replay in (finest, coarse):
            assert torch.equal(scores(replay, module, "9.back"), whole)
            with edited(layers["9.back"].module):
                assert torch.equal(scores(replay, module, "9.back"), predict_all(module, x))


def test_a_failure_leaves_no_forward_behind() -> None:
    class Failing(Awkward):
        fail = False

        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            if self.fail:
                raise RuntimeError("on purpose")
            return scores

    model = make(Failing)
    x = images(4)
    with eval_mode(model) as module:
        layers = list(editable_layers(module, x))
        replay = Replay(module, {"": x}, layers, monitor=Monitor())
        model.fail = True  # type: ignore[assignment]
        with pytest.raises(RuntimeError, match="on purpose"):
            scores(replay, module, "third")
        with pytest.raises(RuntimeError, match="on purpose"):
            Replay(module, {"": x}, layers, monitor=Monitor())
    assert not any("forward" in part.__dict__ for part in model.modules())


def test_a_forward_of_ones_own_is_kept() -> None:
    model = make(Awkward)
    seen: list[int] = []
    usual = model.pair.forward  # type: ignore[union-attr]

    def own(x: Tensor) -> object:
        seen.append(len(x))
        return usual(x)

    model.pair.forward = own  # type: ignore[union-attr]
    x = images(4)
    with eval_mode(model) as module:
        layers = list(editable_layers(module, x))
        replay = Replay(module, {"": x}, layers, monitor=Monitor())
        before = len(seen)
        scores(replay, module, "third")
        assert len(seen) == before
    assert model.pair.__dict__["forward"] is own


def test_it_stops_when_asked() -> None:
    model = make(Awkward)
    x = images(4)
    with eval_mode(model) as module:
        layers = list(editable_layers(module, x))
        with pytest.raises(Cancelled):
            Replay(module, {"": x}, layers, monitor=Monitor(None, lambda: True))
        replay = Replay(module, {"": x}, layers, monitor=Monitor())
        with pytest.raises(Cancelled):
            scores(replay, module, "third", Monitor(None, lambda: True))


@pytest.mark.parametrize("labelled", [False, True])
def test_a_judge_measures_the_same_with_less_work(labelled: bool) -> None:
    model = make(Awkward)
    references, carriers = images(20), images(20, seed=5)
    validation = (images(9, seed=6), torch.arange(9) % 4) if labelled else None
    with eval_mode(model) as module:
        layers = list(editable_layers(module, references))
        judge = Judge(module, references, carriers, references, validation)
        plain = {}
        for layer in layers:
            with edited(layer.module):
                plain[layer.name] = judge.measure(module)
        with judge.sharing(module, layers, Monitor()):
            model.count.calls = 0  # type: ignore[union-attr]
            for layer in layers:
                with edited(layer.module):
                    assert judge.measure(module, edited=layer.name) == plain[layer.name]
                    below = judge.measure_below(module, 2.0, edited=layer.name)
                    assert below == plain[layer.name]
            assert model.count.calls == 0  # type: ignore[union-attr]
        judge.measure(module, edited=layers[0].name)
        assert model.count.calls > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("when", ["keeping", "going on"])
def test_where_memory_runs_out_less_is_kept(when: str) -> None:
    class Short(Awkward):
        most = 100

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    model = make(Short)
    x = images(7)
    with eval_mode(model) as module:
        layers = list(editable_layers(module, x))
        if when == "keeping":
            model.most = 2  # type: ignore[assignment]
        replay = Replay(module, {"": x}, layers, monitor=Monitor())
        assert bool(replay._kept[""]) == (when == "going on")
        model.most = 2  # type: ignore[assignment]
        with edited(layers[2].module):
            found = scores(replay, module, "third")
            assert not replay._kept[""]
            assert torch.equal(found, predict_all(module, x))
