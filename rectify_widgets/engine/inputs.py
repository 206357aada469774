"""Reference inputs as a stream of batches, whatever holds them.  Imports torch only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from rectify_widgets.engine.checks import check_inputs
from rectify_widgets.engine.inspection import preserving_rng

Inputs: TypeAlias = Tensor | Dataset[Any] | DataLoader[Any]
"""A tensor ``N × C × H × W``, a data set or a data loader; labels in it are ignored."""

_INPUT_NAMES = ("pixel_values", "image", "images", "img", "input", "inputs", "x", "data")


def batches(
    argument: str, inputs: object, batch_size: int, *, like: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield checked batches of inputs, all of one sample shape, that of ``like`` if it is given.

    A sample of a data set, or a batch of a loader, may be a tensor, a tuple or list whose first
    entry is the input, or a dict with the input under a customary name or as its only image.

    Raises:
        TypeError: ``inputs`` is none of the three kinds, or a sample holds no tensor.
        ValueError: nothing in it, NaN, or samples of different shapes.
    """
    count = 0
    for batch in _raw(argument, inputs, batch_size):
        checked = check_inputs(argument, batch, like=like)
        like = checked if like is None else like
        count += 1
        yield checked
    if not count:
        raise ValueError(f"{argument}: got no samples, want at least one")


def gather(argument: str, inputs: object, limit: int | None = None) -> Tensor:
    """All inputs, or the first ``limit``, as one tensor."""
    collected: list[Tensor] = []
    count = 0
    for batch in batches(argument, inputs, batch_size=256):
        collected.append(batch)
        count += len(batch)
        if limit is not None and count >= limit:
            break
    everything = torch.cat(collected)
    return everything if limit is None else everything[:limit]


def count_inputs(inputs: object) -> int | None:
    """Number of samples where it is known beforehand, else None."""
    if isinstance(inputs, Tensor):
        return len(inputs) if inputs.ndim else None
    source = inputs.dataset if isinstance(inputs, DataLoader) else inputs
    try:
        return len(source)  # type: ignore[arg-type]
    except TypeError:
        return None


def _raw(argument: str, inputs: object, batch_size: int) -> Iterator[Tensor]:
    if isinstance(inputs, Tensor):
        yield from (check_inputs(argument, inputs)).split(batch_size)
    elif isinstance(inputs, DataLoader):
        # A loader takes its seed, and a shuffle its order, from the caller's random numbers.
        generators = [inputs.generator, getattr(inputs.sampler, "generator", None)]
        own = [one for one in generators if isinstance(one, torch.Generator)]
        states = [one.get_state() for one in own]
        try:
            with preserving_rng():
                for batch in inputs:
                    yield _input_of(argument, batch)
        finally:
            for one, state in zip(own, states, strict=True):
                one.set_state(state)
    elif isinstance(inputs, Dataset):
        generator = torch.Generator().manual_seed(0)
        sequential = DataLoader(inputs, batch_size, collate_fn=list, generator=generator)
        if not isinstance(inputs, IterableDataset) and count_inputs(inputs) == 0:
            return
        # A data set may augment its samples with the caller's random numbers.
        with preserving_rng():
            for samples in sequential:
                tensors = [_input_of(argument, sample) for sample in samples]
                shapes = {tuple(tensor.shape) for tensor in tensors}
                if len(shapes) > 1:
                    raise ValueError(
                        f"{argument}: got samples of different shapes {sorted(shapes)}, "
                        "want one shape; resize or crop them in the data set"
                    )
                yield torch.stack(tensors)
    else:
        raise TypeError(
            f"{argument}: got {type(inputs).__name__}, want a tensor N × C × H × W, "
            "a torch Dataset or a DataLoader"
        )


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
