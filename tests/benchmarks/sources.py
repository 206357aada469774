"""Where the networks of the comparison come from: those that ship, or others built anew.

Imports the cases and their builds.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from rectify_widgets import cases
from rectify_widgets.cases import build
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.definition import DEFINITIONS, FASHION_MNIST, MNIST, read
from rectify_widgets.cases.idx import Folder, read_split
from rectify_widgets.cases.storage import weights_file


@dataclass(frozen=True)
class Source:
    """Cases by name.

    Args:
        data: folder of the data sets to build networks from, or of the one that is needed; None
            takes the networks that ship.
        cache: where built networks are kept.
        seed: of the builds.
    """

    data: Path | None = None
    cache: Path = Path("networks")
    seed: int = 0

    @property
    def title(self) -> str:
        """What the records call it."""
        return "shipped" if self.data is None else f"built with seed {self.seed}"

    def folder(self, name: str) -> Folder:
        """Where the files of a case lie, or will lie."""
        if self.data is None:
            return files(cases) / "data"
        return self.cache / f"{name}-seed-{self.seed}-{_contents(self._data(name))}"

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of the cases that have to be built first."""
        return [name for name in names if not (self.folder(name) / weights_file(name)).is_file()]

    def make(self, name: str) -> None:
        """Build a case into its folder, which is there only when it is complete."""
        folder = self.folder(name)
        assert isinstance(folder, Path)
        draft = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            definition = DEFINITIONS[name]
            build.build(definition, self._data(name), draft, seed=self.seed, quiet=True)
            if folder.exists():  # left behind without weights
                shutil.rmtree(folder)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def load(self, name: str) -> Case:
        """The case, from its files."""
        if self.data is None:
            return cases.load(name)
        return read(DEFINITIONS[name], self.folder(name))

    def check(self, names: Sequence[str]) -> None:
        """Complain of a folder of data that cannot be meant for all of these cases.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: one folder of IDX files for cases on two data sets.
        """
        if self.data is None:
            return
        if not self.data.is_dir():
            raise FileNotFoundError(f"data: {self.data} is no folder; give one with IDX files")
        if len({self._data(name) for name in names}) == 1 < len({_set(name) for name in names}):
            raise ValueError(
                f"data: got {self.data} for cases on {FASHION_MNIST.name} and {MNIST.name}, want a "
                "folder with one folder of each name"
            )

    def _data(self, name: str) -> Path:
        """The folder of IDX files that a case is built from."""
        assert self.data is not None
        inside = self.data / _set(name)
        return inside if inside.is_dir() else self.data


def fingerprint(case: Case) -> str:
    """Sixteen hexadecimal digits that tell one network with its pairs from another.

    Of pairs it is the clean inputs: a blend differs in its last bit between processors.
    """
    digest = hashlib.sha256(repr(case.record.get("heldout")).encode())
    for key, tensor in {**case.model.state_dict(), "clean": case.pairs.clean}.items():
        digest.update(key.encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _set(name: str) -> str:
    return DEFINITIONS[name].data.name


@lru_cache(maxsize=4)
def _contents(data: Path) -> str:
    """Eight hexadecimal digits that tell one data set from another."""
    return hashlib.sha256(read_split(data, "train")[1].tobytes()).hexdigest()[:8]
