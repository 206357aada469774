"""A device that is short of memory gets fewer inputs at a time; stand-ins raise what torch raises."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import rectify_widgets as rw
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.running import eval_mode, in_chunks, predict_all
from tests.engine.calls import LABELS, REFERENCE
from tests.engine.traces import Tiny, images, untouched


class Small(Tiny):
    """Fits no more than ``most`` inputs."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.first(x)))
        self.seen.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.head(self.pool(self.activation(self.third(self.second(x)))).flatten(1))  # type: ignore[no-any-return]


def test_chunks_shrink_until_they_fit() -> None:
    model = Small(3)
    asked: list[int] = []

    def ask() -> bool:
        asked.append(1)
        return False

    monitor = Monitor(None, ask)
    with eval_mode(model) as module:
        scores = predict_all(module, images(11), batch_size=8, monitor=monitor)
    assert model.seen == [8, 4, 2, 2, 2, 2, 2, 1]
    assert len(asked) == len(model.seen)
    plain = Small(11)
    with eval_mode(plain) as module:
        assert torch.allclose(scores, predict_all(module, images(11)), atol=1e-6)
    assert plain.seen == [11]


def test_the_rest_counts_not_the_chunk_size() -> None:
    model = Small(2)
    with eval_mode(model) as module:
        predict_all(module, images(5), batch_size=1000)
    assert model.seen == [5, 2, 2, 1]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes from 3.11 on")
def test_one_input_that_does_not_fit_is_an_error_that_says_so() -> None:
    model = Small(0)
    with untouched(model, REFERENCE), pytest.raises(torch.OutOfMemoryError) as raised:
        rw.evaluate(model, (REFERENCE, LABELS))
    assert any("single input" in note for note in raised.value.__notes__)


def test_other_errors_are_not_tried_again() -> None:
    tried: list[slice] = []

    def fail(rows: slice) -> None:
        tried.append(rows)
        raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError, match="paper"):
        list(in_chunks(8, 4, fail))
    assert tried == [slice(0, 4)]


def test_every_row_comes_once_and_in_order() -> None:
    def rows_of(most: int) -> Callable[[slice], list[int]]:
        def work(rows: slice) -> list[int]:
            if rows.stop - rows.start > most:
                raise torch.OutOfMemoryError
            return list(range(rows.start, rows.stop))

        return work

    for count in range(12):
        for size in range(1, 14):
            for most in range(1, 6):
                parts = list(in_chunks(count, size, rows_of(most)))
                assert [row for part in parts for row in part] == list(range(count))
                assert all(len(part) <= min(size, most) for part in parts)


def test_what_a_failed_try_held_is_free_when_the_cache_is_emptied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[weakref.ref[Tensor]] = []

    def check() -> None:
        assert all(kept() is None for kept in held)

    def work(rows: slice) -> None:
        check()
        activations = torch.ones(3)
        held.append(weakref.ref(activations))
        if rows.stop - rows.start > 2:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "empty_cache", check)
    list(in_chunks(9, 9, work))
    assert len(held) == 7


def test_the_cache_of_the_device_is_emptied_before_each_new_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emptied: list[int] = []
    model = Small(1)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(len(model.seen)))
    with eval_mode(model) as module:
        predict_all(module, images(4), batch_size=4)
    assert model.seen == [4, 2, 1, 1, 1, 1]
    assert emptied == [1, 2]


def test_figures_do_not_depend_on_the_memory() -> None:
    model = Small(2)
    labels = (torch.arange(8) % 4)[:8]
    found = rw.evaluate(model, (REFERENCE, labels))
    assert max(model.seen) == 8
    assert str(found) == str(rw.evaluate(Small(8), (REFERENCE, labels)))
