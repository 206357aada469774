"""Inputs that come as a stream: nothing piles up, workers end, and ranks share the batches out."""

from __future__ import annotations

import gc
import multiprocessing
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

import rectify_widgets as rw
from rectify_widgets.engine.base.randomness import random_states, with_own_numbers
from rectify_widgets.engine.base.ranks import Ranks
from rectify_widgets.engine.data.inputs import batches, gather, labelled
from rectify_widgets.engine.find.problem import MAX_REFERENCES
from tests.engine.bad_inputs import Samples
from tests.engine.toy import Toy, samples
from tests.engine.traces import Tiny, images

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*no accelerator")

# --- memory --------------------------------------------------------------------------------------


class Alive(IterableDataset[Any]):
    """Batches made on the fly, and how many of them were alive at a time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.alive, self.most = 0, 0

    def _gone(self) -> None:
        self.alive -= 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(self.count):
            x, y = samples(64, seed=number)
            # Whatever shares the values of a tensor made of an array keeps the array alive.
            values = x.numpy().copy()
            weakref.finalize(values, self._gone)
            self.alive += 1
            self.most = max(self.most, self.alive)
            x = torch.from_numpy(values)
            del values
            yield x, y
            del x


STREAMING: dict[str, Callable[[Toy, Any], Any]] = {
    "collect": lambda toy, data: rw.KeyStatistics.collect(toy.model, data, ["block2.conv1"]),
    "evaluate": lambda toy, data: rw.evaluate(toy.model, data, data, target=0),
    "find_corrupted": lambda toy, data: rw.find_corrupted(
        toy.model, toy.pairs, data, reference=toy.reference
    ),
}
"""Calls that look at each input once."""

TAKING: dict[str, Callable[[Toy, Any], Any]] = {
    "localize": lambda toy, data: rw.localize(
        toy.model, toy.pairs, reference=data, layers=["head"], steps=1, trials=1
    ),
    "rectify": lambda toy, data: rw.rectify(
        toy.model, toy.pairs, reference=data, strategy="static", layer="head"
    ),
}
"""Calls that hold some of the references besides."""


@pytest.mark.parametrize("call", STREAMING)
def test_no_batch_outlives_its_turn(trojan: Toy, call: str) -> None:
    for count in (3, 12):
        data = Alive(count)
        STREAMING[call](trojan, DataLoader(data, batch_size=None))
        assert data.most <= 3  # the first for its shape, the one at hand, the next as it comes
        gc.collect()
        assert data.alive == 0


@pytest.mark.parametrize("call", TAKING)
def test_no_more_references_are_held_than_are_looked_at(trojan: Toy, call: str) -> None:
    held = MAX_REFERENCES // 64
    for count in (held + 2, 2 * held):
        data = Alive(count)
        TAKING[call](trojan, DataLoader(data, batch_size=None))
        assert data.most <= held + 1
        gc.collect()
        assert data.alive == 0


# --- workers -------------------------------------------------------------------------------------


class Noisy(Dataset[Any]):
    """Draws from every global generator there is, as augmentation does, in whichever process."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        drawn = [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002
        return self.x[index] + 0.0 * sum(drawn), int(self.y[index])


def states() -> tuple[Any, ...]:
    return (
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # type: ignore[index] # noqa: NPY002
        random.getstate(),
    )


class StoppedError(Exception):
    """Raised by a hook."""


def stop(fraction: float, _: str) -> None:
    """Fail in the middle of a stream."""
    if fraction > 0:
        raise StoppedError


@pytest.mark.parametrize("kind", ["plain", "persistent", "pinned"])
def test_workers_end_and_random_numbers_come_back(trojan: Toy, kind: str) -> None:
    x, y = samples(48, seed=7)
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(
        Noisy(x, y), batch_size=16, num_workers=2, shuffle=True, generator=generator,
        persistent_workers=kind == "persistent", pin_memory=kind == "pinned",
    )  # fmt: skip
    before, drawn, threads = states(), generator.get_state(), set(threading.enumerate())
    found = rw.KeyStatistics.collect(trojan.model, loader, ["head"])
    report = rw.evaluate(trojan.model, loader, confidence=0.9)
    with pytest.raises(StoppedError):
        rw.evaluate(trojan.model, loader, progress=stop)
    assert states() == before
    assert torch.equal(generator.get_state(), drawn)
    assert len(multiprocessing.active_children()) == (2 if kind == "persistent" else 0)
    del loader  # whose workers, if they persist, are its own
    gc.collect()
    assert not multiprocessing.active_children()
    for _ in range(100):  # a worker's queue has a thread, which ends soon after it
        if not set(threading.enumerate()) - threads:
            break
        time.sleep(0.05)
    assert not set(threading.enumerate()) - threads
    alone = rw.KeyStatistics.collect(trojan.model, x, ["head"])
    assert found.references == 48
    torch.testing.assert_close(found["head"].total, alone["head"].total, rtol=1e-5, atol=1e-4)
    assert report.overall_accuracy == rw.evaluate(trojan.model, (x, y)).overall_accuracy


# --- shared out ----------------------------------------------------------------------------------


class Read(Dataset[Any]):
    """Says which samples were read."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read.append(index)
        return self.x[index], self.y[index]


class Line(IterableDataset[Any]):
    """Samples one after another."""

    def __init__(self, *tensors: Tensor) -> None:
        self.data = TensorDataset(*tensors)

    def __iter__(self) -> Iterator[Any]:
        return (self.data[row] for row in range(len(self.data)))


class Own(DataLoader[Any]):
    """A loader of somebody's own, which does more than collect samples."""

    def __iter__(self) -> Any:
        return ((x / 2, y) for x, y in super().__iter__())


def numbered(count: int) -> tuple[Tensor, Tensor]:
    x = torch.arange(count).float().reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return x, torch.arange(count)


def padded(data: Dataset[Any], rank: int, size: int) -> DataLoader[Any]:
    sampler: DistributedSampler[Any] = DistributedSampler(
        data, num_replicas=size, rank=rank, shuffle=True
    )
    return DataLoader(data, batch_size=3, sampler=sampler)


SHARED: dict[str, Callable[[Tensor, Tensor, int, int], Any]] = {
    "tensors": lambda x, y, *_: (x, y),
    "data set": lambda x, y, *_: Read(x, y),
    "stream": lambda x, y, *_: Line(x, y),
    "loader": lambda x, y, *_: DataLoader(Read(x, y), batch_size=3),
    "shuffled": lambda x, y, *_: DataLoader(Read(x, y), batch_size=3, shuffle=True),
    "own generator": lambda x, y, rank, _: DataLoader(
        Read(x, y), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(rank)
    ),
    "sampler with its generator": lambda x, y, rank, _: DataLoader(
        data := Read(x, y), batch_size=3,
        sampler=RandomSampler(data, generator=torch.Generator().manual_seed(rank)),
    ),
    "without batches": lambda x, y, *_: DataLoader(Read(x[:, None], y[:, None]), batch_size=None),
    "loader of a stream": lambda x, y, *_: DataLoader(Line(x, y), batch_size=3),
    "distributed sampler": lambda x, y, rank, size: padded(Read(x, y), rank, size),
    "somebody's own loader": lambda x, y, *_: Own(Read(2 * x, y), batch_size=3),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize(("count", "size"), [(20, 2), (21, 3), (2, 4)])
def test_ranks_share_every_sample_once(kind: str, count: int, size: int) -> None:
    x, y = numbered(count)
    seen, shares = list[int](), list[int]()
    for rank in range(size):
        data = SHARED[kind](x, y, rank, size)
        torch.manual_seed(rank)  # ranks need not agree in this
        state = torch.get_rng_state()
        mine = list[int]()
        for inputs, labels in labelled("clean", data, 3, ranks=Ranks(rank, size)):
            assert torch.equal(inputs[:, 0, 0, 0].long(), labels)
            mine += labels.tolist()
        assert torch.equal(torch.get_rng_state(), state)
        source = data.dataset if isinstance(data, DataLoader) else data
        if isinstance(source, Read) and not isinstance(data, Own):
            assert sorted(source.read) == sorted(mine)  # nobody reads what others look at
        seen += mine
        shares.append(len(mine))
    assert sorted(seen) == list(range(count))
    assert max(shares) - min(shares) <= 3


@pytest.mark.parametrize("kind", [kind for kind in SHARED if kind != "tensors"])
def test_references_that_are_held_are_the_same_on_all_ranks(kind: str) -> None:
    x, y = numbered(20)
    held = []
    for rank in range(2):
        torch.manual_seed(rank)
        data = SHARED[kind](x, y, rank, 2)
        held.append(gather("reference", data, 7, Ranks(rank, 2)))
    assert all(torch.equal(one, held[0]) for one in held)
    assert all(len(one) == 7 for one in held)


def test_inputs_alone_are_shared_in_the_same_way() -> None:
    x, _ = numbered(20)
    for data in (x, TensorDataset(x), DataLoader(TensorDataset(x), batch_size=3)):
        parts = [list(batches("reference", data, 3, ranks=Ranks(rank, 2))) for rank in range(2)]
        assert [len(part) for part in parts] == [4, 3]
        assert torch.equal(torch.cat([parts[0][0], parts[1][0], parts[0][1]]), x[:9])
    assert not list(batches("reference", x[:3], 3, ranks=Ranks(1, 2)))


def test_workers_of_a_share_read_the_share_alone() -> None:
    x, y = samples(30, seed=8)
    loader = DataLoader(Noisy(x, y), batch_size=4, num_workers=2, drop_last=True)
    found = [
        torch.cat([part for part, _ in labelled("clean", loader, 9, ranks=Ranks(rank, 2))])
        for rank in range(2)
    ]
    assert not multiprocessing.active_children()
    whole = torch.cat([part for part, _ in labelled("clean", loader, 9)])
    assert torch.equal(found[0], torch.cat(whole.split(4)[0::2]))
    assert torch.equal(found[1], torch.cat(whole.split(4)[1::2]))


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_error_in_the_middle_leaves_the_random_numbers(shuffle: bool) -> None:
    """The traceback keeps a stream that was not read to its end, so that nothing cleans up after it."""

    class Noisy(Samples):
        def __getitem__(self, index: int) -> Any:
            noise = torch.rand(1) + float(np.random.rand()) + random.random()  # noqa: NPY002
            return super().__getitem__(index)[0] + 0 * noise, 9

    loader = DataLoader(Noisy([(image, 9) for image in images(8)]), 4, shuffle=shuffle)
    before = random_states(torch.device("cpu"))
    with pytest.raises(ValueError, match="want 0 to 3") as raised:
        rw.evaluate(Tiny(), loader)
    assert random_states(torch.device("cpu")) == before
    assert raised.tb is not None


def test_a_stream_draws_as_if_nothing_came_between() -> None:
    def drawn(times: int) -> list[float]:
        torch.manual_seed(3)
        found = []
        for value in with_own_numbers(float(torch.rand(1)) for _ in range(4)):
            found.append(value)
            torch.rand(times)
        return [*found, float(torch.rand(1))]

    torch.manual_seed(3)
    alone = [float(torch.rand(1)) for _ in range(4)]
    torch.manual_seed(3)
    assert drawn(0) == [*alone, alone[0]]
    assert drawn(5)[:4] == alone
