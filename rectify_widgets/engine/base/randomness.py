"""The random states of torch, numpy and Python: compared, and put back.  Imports torch and numpy."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np
import torch

T = TypeVar("T")


def _numpy_state() -> tuple[Any, ...]:
    """Kind, words, position and spare normal of numpy's global generator."""
    return cast("tuple[Any, ...]", np.random.get_state(legacy=True))  # noqa: NPY002 - users draw from it


def random_states(device: torch.device) -> tuple[Any, ...]:
    """The random states that `preserving_rng` restores, to compare."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    array = _numpy_state()
    words = [state.numpy().tobytes() for state in states]
    return (*words, array[1].tobytes(), array[2:], random.getstate())


@contextmanager
def preserving_rng(device: torch.device | None = None) -> Iterator[None]:
    """Restore the random states of torch, numpy and Python, where the block has changed them."""
    cpu = torch.get_rng_state()
    array, python = _numpy_state(), random.getstate()
    cuda = (
        torch.cuda.get_rng_state(device) if device is not None and device.type == "cuda" else None
    )
    try:
        yield
    finally:
        if not torch.equal(cpu, torch.get_rng_state()):
            torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)  # type: ignore[arg-type]
        if not np.array_equal(array[1], (now := _numpy_state())[1]) or array[2:] != now[2:]:
            np.random.set_state(array)  # noqa: NPY002 - the global state is the point
        if python != random.getstate():
            random.setstate(python)


def with_own_numbers(items: Iterator[T], *generators: torch.Generator) -> Iterator[T]:
    """The items of an iterator whose random numbers run on by themselves.

    Between two items the random states of torch, numpy and Python, and of ``generators``, are the
    caller's, also where the rest is never asked for.
    """
    theirs: list[Any] | None = None
    while True:
        ours = _states(generators)
        if theirs is not None:
            _put_back(theirs, generators)
        try:
            item = next(items)
        except StopIteration:
            return
        finally:
            theirs = _states(generators)
            _put_back(ours, generators)
        yield item


def _states(generators: Sequence[torch.Generator]) -> list[Any]:
    own = [one.get_state() for one in generators]
    return [torch.get_rng_state(), _numpy_state(), random.getstate(), *own]


def _put_back(states: Sequence[Any], generators: Sequence[torch.Generator]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002 - the global state is the point
    random.setstate(states[2])
    for one, state in zip(generators, states[3:], strict=True):
        one.set_state(state)
