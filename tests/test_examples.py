"""The examples in the docstrings run, and every public name has one.

What `model`, `pairs` and the other names in them stand for is in examples.py.
"""

from __future__ import annotations

import doctest
import inspect
import types
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import pytest
import torch

import rectify_widgets as rw
from rectify_widgets import baselines
from tests import examples

pytestmark = pytest.mark.usefixtures("one_thread")

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def found() -> dict[str, doctest.DocTest]:
    """Every docstring of the package that has an example, by the dotted name of its object."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [rw, *(import_module(m.name) for m in walk_packages(rw.__path__, "rectify_widgets."))]
    tests = (test for module in modules for test in finder.find(module, globs={}))
    return {test.name: test for test in tests if test.examples}


FOUND = found()


@pytest.fixture(scope="module")
def names() -> Iterator[dict[str, Any]]:
    with torch.random.fork_rng(devices=[]):
        yield examples.names()


@pytest.mark.parametrize("name", FOUND)
def test_example_runs_and_leaves_the_model_as_it_was(
    name: str, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {key: value.clone() for key, value in names["model"].state_dict().items()}
    test, said = FOUND[name], list[str]()
    test.globs = dict(names)
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert not said, "".join(said)
    after = names["model"].state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("room", [rw, rw.cases, rw.cases.pretrained, baselines])
def test_every_public_name_has_an_example(room: types.ModuleType) -> None:
    things = {name: getattr(room, name) for name in room.__all__}
    for name, thing in things.items():
        if inspect.ismodule(thing):
            things[name] = thing.__name__
        elif inspect.isclass(thing) or inspect.isroutine(thing):
            things[name] = f"{thing.__module__}.{thing.__qualname__}"
        else:  # a constant has no docstring that can be asked for
            things[name] = room.__name__
    assert not [name for name, where in things.items() if where not in FOUND]
