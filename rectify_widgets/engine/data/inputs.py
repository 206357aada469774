"""Inputs, with or without labels, as a stream of batches.  Imports torch only.

Only the current batch is kept, besides what a loader's own workers fetch ahead.  Where ranks share a
call (see ``base/ranks.py``) each takes every ``size``-th batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
)

from rectify_widgets.engine.base.checks import check_inputs, check_labels, check_type
from rectify_widgets.engine.base.randomness import with_own_numbers
from rectify_widgets.engine.base.ranks import ALONE, Ranks

Inputs: TypeAlias = Tensor | Dataset[Any] | DataLoader[Any]
"""A tensor ``N × C × H × W``, a data set or a data loader; labels in it are ignored."""

Labelled: TypeAlias = tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any]
"""Inputs and their labels: two tensors, or a data set or a data loader of (input, label)."""

_INPUT_NAMES = ("pixel_values", "image", "images", "img", "input", "inputs", "x", "data")
_LOADER_OPTIONS = (
    "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn",
    "multiprocessing_context", "generator", "prefetch_factor",
)  # fmt: skip
_LABEL_NAMES = ("labels", "label", "target", "targets", "y", "class")


def batches(
    argument: str,
    inputs: object,
    batch_size: int,
    *,
    like: Tensor | None = None,
    ranks: Ranks = ALONE,
    whole: bool = False,
) -> Iterator[Tensor]:
    """Yield checked batches of inputs, all of one sample shape.

    A sample of a data set, or a batch of a loader, may be a tensor, a tuple or list whose first
    entry is the input, or a dict with the input under a customary name or as its only image.

    Args:
        argument: what the caller calls ``inputs``.
        inputs: a tensor, a data set or a loader.
        batch_size: inputs in one batch (a loader brings its own).
        like: a batch with the wanted sample shape; None takes that of the first batch.
        ranks: who shares the batches.
        whole: all batches on every rank, the same ones in the same order.

    Raises:
        TypeError: ``inputs`` is none of the three kinds, or a sample holds no tensor.
        ValueError: nothing in it, NaN, or samples of different shapes.
    """
    if isinstance(inputs, Tensor):
        split = check_inputs(argument, inputs, like=like).split(batch_size)
        yield from split if whole else ranks.share(split)
        return
    want = "a tensor N × C × H × W, a torch Dataset or a DataLoader"
    for batch in _stream(argument, inputs, batch_size, ranks, want, whole=whole):
        like = check_inputs(argument, _joined(argument, batch, _input_of), like=like)
        yield like


def labelled(
    argument: str,
    data: object,
    batch_size: int,
    *,
    like: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield checked batches of inputs and their labels (int64), see `batches`.

    A sample of a data set, or a batch of a loader, may be a tuple or list that begins with input
    and label, or a dict with both under customary names.

    Raises:
        TypeError: ``data`` is none of these, or a sample holds no label.
        ValueError: nothing in it, NaN, samples of different shapes, or labels that are not class numbers.
    """
    if isinstance(data, tuple | list) and len(data) == 2:
        inputs = check_inputs(f"{argument}[0]", data[0], like=like)
        labels = check_labels(f"{argument}[1]", data[1], count=len(inputs), hot=True)
        pairs = list(zip(inputs.split(batch_size), labels.split(batch_size), strict=True))
        yield from ranks.share(pairs)
        return
    want = "a pair (inputs, labels) of tensors, or a Dataset or DataLoader that yields such pairs"
    for batch in _stream(argument, data, batch_size, ranks, want):
        like = check_inputs(argument, _joined(argument, batch, _input_of), like=like)
        labels = _joined(argument, batch, _label_of)
        yield like, check_labels(f"{argument}: its labels", labels, count=len(like), hot=True)


def gather(argument: str, inputs: object, limit: int | None = None, ranks: Ranks = ALONE) -> Tensor:
    """All inputs, or the first ``limit``, as one tensor, the same one on every rank."""
    collected: list[Tensor] = []
    for batch in batches(argument, inputs, batch_size=256, ranks=ranks, whole=True):
        collected.append(batch)
        if limit is not None and sum(map(len, collected)) >= limit:
            break
    return torch.cat(collected)[:limit]


def count_inputs(inputs: object) -> int | None:
    """Number of samples where it is known in advance, otherwise None."""
    if isinstance(inputs, tuple | list) and inputs:
        inputs = inputs[0]
    if isinstance(inputs, Tensor):
        return len(inputs) if inputs.ndim else None
    source = inputs.dataset if isinstance(inputs, DataLoader) else inputs
    try:
        return len(source)  # type: ignore[arg-type]
    except TypeError:
        return None


# --- streams -------------------------------------------------------------------------------------


class _Samples(list[Any]):
    """The samples of one batch of a data set, not stacked yet."""


def _stream(
    argument: str,
    source: object,
    batch_size: int,
    ranks: Ranks,
    want: str,
    *,
    whole: bool = False,
) -> Iterator[object]:
    """What a loader yields, or `_Samples` of a data set; the caller's random numbers stay."""
    loader: Any = source
    empty = ValueError(f"{argument}: got no samples, want at least one")
    if not isinstance(source, DataLoader):
        data = check_type(argument, source, Dataset, want)
        if not isinstance(data, IterableDataset) and count_inputs(data) == 0:
            if whole or not ranks.several:
                raise empty
            return
        generator = torch.Generator().manual_seed(0)
        loader = DataLoader(data, batch_size, collate_fn=_Samples, generator=generator)
    # A loader takes its seed, and a shuffle its order, from the caller's random numbers, and a data
    # set may augment its samples with them.
    generators = [loader.generator, getattr(loader.sampler, "generator", None)]
    own = [one for one in generators if isinstance(one, torch.Generator)]

    def read() -> Iterator[object]:
        if ranks.several:  # one order on all ranks
            for one in (torch.default_generator, *own):
                one.manual_seed(0)
        yield from _shared(loader, ALONE if whole else ranks) if ranks.several else loader

    count = 0
    for count, batch in enumerate(with_own_numbers(read(), *own), start=1):  # noqa: B007 - counted below
        yield batch
    if not count and (whole or not ranks.several):
        raise empty


def _shared(loader: DataLoader[Any], ranks: Ranks) -> Iterator[object]:
    """This rank's batches; an indexed data set reads no others.

    A `DistributedSampler` is set aside: it shares the samples out by itself, some of them twice to
    make the numbers even.
    """
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return islice(iter(loader), ranks.rank, None, ranks.size)
    if isinstance(getattr(sampler, "sampler", sampler), DistributedSampler):
        sampler = SequentialSampler(loader.dataset)  # type: ignore[arg-type]
        if loader.batch_sampler is not None:
            size: Any = loader.batch_sampler
            sampler = BatchSampler(sampler, size.batch_size, size.drop_last)
    part: Any = islice(iter(sampler), ranks.rank, None, ranks.size)
    same: Any = {name: getattr(loader, name) for name in _LOADER_OPTIONS}
    if loader.batch_sampler is None:
        return iter(DataLoader(loader.dataset, batch_size=None, sampler=part, **same))
    return iter(DataLoader(loader.dataset, batch_sampler=part, **same))


def _joined(argument: str, batch: object, part: Callable[[str, object], Tensor]) -> Tensor:
    """Inputs or labels of a batch: as a loader has put them together, or stacked here."""
    if not isinstance(batch, _Samples):
        return part(argument, batch)
    tensors = [part(argument, sample) for sample in batch]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise ValueError(
            f"{argument}: got samples of different shapes {sorted(shapes)}, "
            "want one shape; resize or crop them in the data set"
        )
    return torch.stack(tensors)


def _input_of(argument: str, sample: object) -> Tensor:
    if isinstance(sample, Tensor):
        return sample
    if isinstance(sample, tuple | list) and sample and isinstance(sample[0], Tensor):
        return sample[0]
    if isinstance(sample, Mapping):
        named = [sample[name] for name in _INPUT_NAMES if name in sample]
        images = [v for v in sample.values() if isinstance(v, Tensor) and v.is_floating_point()]
        for candidate in (*named, *images):
            if isinstance(candidate, Tensor):
                return candidate
    raise TypeError(
        f"{argument}: got a sample of type {type(sample).__name__} without an input tensor, want a "
        "tensor, a tuple that begins with one, or a dict with one under 'pixel_values' or 'image'"
    )


def _label_of(argument: str, sample: object) -> Tensor:
    label: object = None
    if isinstance(sample, tuple | list) and len(sample) > 1:
        label = sample[1]
    elif isinstance(sample, Mapping):
        label = next((sample[name] for name in _LABEL_NAMES if name in sample), None)
    if label is not None:
        try:
            return torch.as_tensor(label)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TypeError(
        f"{argument}: got a sample of type {type(sample).__name__} without a class number, want a "
        "tuple (input, label), or a dict with the label under 'labels' or 'label'"
    )
