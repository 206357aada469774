"""Two threads look at one model, as two widgets in a notebook do, and do not disturb each other."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
from torch import nn

import rectify_widgets as rw
from rectify_widgets.engine.model.running import copied, eval_mode
from tests.widget_fakes import network, pairs

ROUNDS = 60


@pytest.fixture(autouse=True)
def eager_threads() -> Iterator[None]:
    """Threads take turns every few microseconds, so that what can go wrong does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*works: Callable[[], object]) -> None:
    """Do each piece of work in a thread of its own, many times; raise what one of them raised."""
    problems: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        start.wait()
        try:
            for _ in range(ROUNDS):
                work()
        except BaseException as problem:  # noqa: BLE001 - raised below
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def test_maps_and_layers_of_one_model_at_a_time() -> None:
    model, given = network().train(), pairs(2)

    def maps() -> None:
        rw.attribute(model, given.clean, method="grad-cam", layer="3")

    def layers() -> None:
        catalog = rw.editable_layers(model, given.clean)
        assert list(catalog.editable) == ["0", "3", "6"], catalog.refused

    def copies() -> None:
        twin = copied(model)
        assert hooks(twin) == 0
        assert all(part.training for part in twin.modules())

    together(maps, layers, copies)
    assert all(part.training for part in model.modules())
    assert hooks(model) == 0


def test_a_thread_may_look_again_while_it_looks() -> None:
    model = network().train()
    with eval_mode(model), eval_mode(model) as module:
        assert not module.training
    assert model.training


def test_locks_do_not_keep_models_alive() -> None:
    model = network()
    reference = weakref.ref(model)
    with eval_mode(model):
        pass
    del model
    gc.collect()
    assert reference() is None


def test_other_models_do_not_wait() -> None:
    first, second, done = network(), network(), threading.Event()

    def look() -> None:
        with eval_mode(second):
            done.set()

    with eval_mode(first):
        threading.Thread(target=look).start()
        assert done.wait(10)
