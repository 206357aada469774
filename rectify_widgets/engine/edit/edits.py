"""A rank-one edit: applying, reverting and storing it.  Imports torch only.

In flattened form (``O × K``) the update is ``Λ dᵀ``: a grouped convolution is edited group by group,
rank one within each.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_module, check_type, nearest
from rectify_widgets.engine.base.files import read_tensors, write_tensors
from rectify_widgets.engine.edit.statistics import weight_bytes
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.running import unwrap, working_dtype

FORMAT = "rectify_widgets.edits.1"
"""Kind of the files that hold edits."""
_DESCRIBED = ("layer", "shape", "direction", "ridge", "key_space", "solved_for", "refined")
"""Attributes of an edit that describe its tensors in a file."""


def solver_settings(direction: str, ridge: float, refined: bool) -> str:
    """How an edit was solved, in short: ``"contrast 0.01"``, or ``"joint"`` without a ridge."""
    return direction if refined else f"{direction} {ridge:g}"


@dataclass(frozen=True, eq=False)
class RankOneEdit:
    """A rank-one change of one layer's weight, solved for one particular weight.

    Attributes:
        layer: dotted name of the layer.
        left: ``Λ``; ``O``, or ``O × kh·kw`` in the channel key space.
        right: ``d``; ``K`` (``G × K`` where the layer has groups).
        shape: of the weight.
        direction, ridge, key_space, refined: how it was solved, and whether gradient steps followed.
        solved_for: digest of the weight that it was solved for.

    Example:
        >>> edit = rw.solve_edit(model, pairs, layer="classifier", reference=reference)
        >>> edit.apply(model)  # in place, on your own network
        >>> edit.is_applied(model)
        True
        >>> edit.revert(model)  # to the bit
    """

    layer: str
    left: Tensor
    right: Tensor
    shape: tuple[int, ...]
    direction: str
    ridge: float
    key_space: str
    solved_for: str
    refined: bool = False
    _before: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.shape))
        closed_form = f"{self.direction} direction, ridge {self.ridge:g}"
        how = self.settings if self.refined else closed_form
        return f"RankOneEdit({self.layer!r}, weight {shape}, {how})"

    @property
    def settings(self) -> str:
        """How it was solved, in short: ``"contrast 0.01, refined"``."""
        return solver_settings(self.direction, self.ridge, self.refined)

    @property
    def delta(self) -> Tensor:
        """``Λ dᵀ`` in the shape of the weight."""
        right = self.right.reshape(-1, self.right.shape[-1])
        left = self.left.reshape(len(right), -1, *self.left.shape[1:])
        if self.key_space == "channel" and len(self.shape) > 2:
            whole = torch.einsum("gop,gc->gocp", left, right)
        else:
            whole = torch.einsum("go,gk->gok", left, right)
        return whole.reshape(self.shape)

    def apply(self, model: nn.Module, *, force: bool = False) -> None:
        """Add the edit to the layer's weight, in place.

        Args:
            model: the model that the edit was solved for, or a copy of it.
            force: apply it even if the weight differs from the one that it was solved for.

        Raises:
            TypeError: ``model`` is not a module.
            ValueError: no such layer, one that cannot be edited, another shape, or other weights
                without ``force``.
        """
        weight = self._weight(model)
        if not force and digest(weight) != self.solved_for:
            raise ValueError(
                f"model: the weight of layer {self.layer!r} is not the one that this edit was "
                "solved for; apply it to that model, in the order of solving, or pass force=True"
            )
        before = weight.detach().clone()
        precise = before.to(working_dtype(weight.dtype))
        after = (precise + self.delta.to(precise)).to(weight.dtype)
        if not bool(torch.isfinite(after).all()):
            raise ValueError(
                f"model: the edit makes the weight of layer {self.layer!r} infinite or NaN in "
                f"{weight.dtype}"
            )
        _write(weight, after)
        self._before[digest(weight)] = before
        _APPLIED.setdefault(unwrap(model), []).append(self)

    def revert(self, model: nn.Module) -> None:
        """Restore the weight as it was before `apply`, to the bit.

        Raises:
            TypeError: ``model`` is not a module.
            ValueError: the edit is not applied to ``model``, or a later one must go first.
        """
        weight = self._weight(model)
        stack = _APPLIED.get(unwrap(model), [])
        position = max((i for i, edit in enumerate(stack) if edit is self), default=-1)
        later = [edit for edit in stack[position + 1 :] if edit.is_applied(model)]
        if position >= 0 and later:
            raise ValueError(
                f"model: the edit of layer {later[-1].layer!r} was applied after this one of layer "
                f"{self.layer!r}; revert the later edit first"
            )
        before = self._before.get(digest(weight))
        if before is None:
            raise ValueError(
                f"model: this edit of layer {self.layer!r} is not applied to it as the last one; "
                "revert later edits first, or apply this one before reverting it"
            )
        _write(weight, before)
        if position >= 0:
            del stack[position:]

    def is_applied(self, model: nn.Module) -> bool:
        """Whether the layer's weight is exactly what `apply` produced."""
        return digest(self._weight(model)) in self._before

    def save(self, path: str | Path) -> None:
        """Write the edit as a safetensors file; see `load_edits`."""
        save_edits([self], path)

    def _weight(self, model: nn.Module) -> Tensor:
        modules = dict(unwrap(check_module("model", model)).named_modules())
        weight = getattr(modules.get(self.layer), "weight", None)
        if not isinstance(weight, Tensor):
            raise ValueError(  # noqa: TRY004 - the model is a module, it lacks the layer
                f"model: it has no layer {self.layer!r}{nearest(self.layer, modules)}, which this "
                "edit changes"
            )
        refused = editable_layers(model).refused
        if self.layer in refused:
            raise ValueError(
                f"model: its layer {self.layer!r} cannot be edited: {refused[self.layer]}"
            )
        if tuple(weight.shape) != tuple(self.shape):
            raise ValueError(
                f"model: the weight of layer {self.layer!r} has shape {tuple(weight.shape)}, "
                f"this edit wants {tuple(self.shape)}"
            )
        return weight


_APPLIED: weakref.WeakKeyDictionary[nn.Module, list[RankOneEdit]] = weakref.WeakKeyDictionary()
"""Edits in the order in which they were applied to each model, to refuse reverting out of order."""


def _write(weight: Tensor, values: Tensor) -> None:
    """Give a weight these values, in inference mode if it was made there."""
    with torch.inference_mode() if weight.is_inference() else torch.no_grad():
        weight.copy_(values)


def digest(weight: Tensor) -> str:
    """Digest of a weight's values, the same in every memory format and on every device."""
    kind = f"{weight.dtype}{tuple(weight.shape)}".encode()
    return hashlib.blake2b(kind + weight_bytes(weight), digest_size=16).hexdigest()


class Edits(Sequence[RankOneEdit]):
    """Edits in the order in which they are applied.

    Example:
        >>> edits = rw.Edits(result.edits)
        >>> edits.apply(model)
        >>> model(x_bad[:6]).argmax(dim=1)
        tensor([0, 1, 2, 0, 1, 2])
        >>> edits.revert(model)
        >>> model(x_bad[:6]).argmax(dim=1)
        tensor([0, 0, 0, 0, 0, 0])
    """

    def __init__(self, edits: Sequence[RankOneEdit] = ()) -> None:
        self._edits = tuple(_check_edits(edits))

    @overload
    def __getitem__(self, index: int) -> RankOneEdit: ...
    @overload
    def __getitem__(self, index: slice) -> Edits: ...
    def __getitem__(self, index: int | slice) -> RankOneEdit | Edits:
        return Edits(self._edits[index]) if isinstance(index, slice) else self._edits[index]

    def __iter__(self) -> Iterator[RankOneEdit]:
        return iter(self._edits)

    def __len__(self) -> int:
        return len(self._edits)

    def __repr__(self) -> str:
        return f"Edits([{', '.join(map(repr, self._edits))}])"

    def apply(self, model: nn.Module, *, force: bool = False) -> None:
        """Apply all edits in order, see `RankOneEdit.apply`; if one is refused, revert the others."""
        done: list[RankOneEdit] = []
        try:
            for edit in self:
                edit.apply(model, force=force)
                done.append(edit)
        except BaseException:
            for edit in reversed(done):
                edit.revert(model)
            raise

    def revert(self, model: nn.Module) -> None:
        """Revert all edits, last first, to the bit; see `RankOneEdit.revert`."""
        for edit in reversed(self._edits):
            edit.revert(model)

    def renamed(self, names: Callable[[str], str]) -> Edits:
        """The same changes for a network whose layers have other names, not yet applied.

        From adapters of PEFT to the network that they are merged into, it is ``lambda name:
        name.removeprefix("base_model.model.").replace(".base_layer", "")``.  Merging changes the
        weights, so that the edits are then applied with ``force=True``; they do there what they did
        before, as long as none is of an adapter itself.

        Args:
            names: gives the new dotted name of a layer for its old one.

        Raises:
            TypeError: ``names`` is not a function, or gives something that is no string.

        Example:
            >>> wrapped = torch.nn.ModuleDict({"network": model})
            >>> edits = rw.Edits(result.edits).renamed("network.{}".format)
            >>> edits.apply(wrapped)
            >>> edits.revert(wrapped)
        """
        want = "a function from a layer's name to its new name"
        if not callable(names):
            raise TypeError(f"names: got {type(names).__name__}, want {want}")
        new = [check_type("names", names(edit.layer), str, want) for edit in self]
        pairs = zip(self, new, strict=True)
        return Edits([replace(edit, layer=name, _before={}) for edit, name in pairs])

    def save(self, path: str | Path) -> None:
        """Write the edits as one safetensors file; see `load_edits`."""
        save_edits(self, path)


def save_edits(edits: Sequence[RankOneEdit], path: str | Path) -> None:
    """Write edits, in order, as one safetensors file (a few kilobytes; no weight of the model).

    Raises:
        TypeError, FileNotFoundError: an item that is no edit, no path, or no such folder.

    Example:
        >>> rw.save_edits(result.edits, "fix.safetensors")
        >>> len(rw.load_edits("fix.safetensors")) == len(result.edits)
        True
    """
    tensors, about = pack_edits(edits)
    write_tensors(path, FORMAT, tensors, {"edits": about})


def pack_edits(edits: Sequence[RankOneEdit]) -> tuple[dict[str, Tensor], str]:
    """The edits as tensors by name and their description in JSON."""
    tensors: dict[str, Tensor] = {}
    about = []
    for number, edit in enumerate(_check_edits(edits)):
        tensors[f"{number}.left"] = edit.left
        tensors[f"{number}.right"] = edit.right
        about.append({name: getattr(edit, name) for name in _DESCRIBED})
    return tensors, json.dumps(about)


def _check_edits(edits: Sequence[RankOneEdit]) -> Sequence[RankOneEdit]:
    for edit in edits:
        check_type("edits", edit, RankOneEdit, "RankOneEdit objects in a list")
    return edits


def load_edits(path: str | Path) -> Edits:
    """Read edits written by `RankOneEdit.save`, `save_edits` or ``Rectification.save``.

    Raises:
        TypeError, FileNotFoundError: not a path, or no such file.
        ValueError: the file holds no edits, or damaged ones.

    Example:
        >>> result.save("fix.safetensors")
        >>> rw.load_edits("fix.safetensors")
        Edits([RankOneEdit('classifier', weight 3 × 288, ...)])
    """
    return unpack_edits(str(path), *read_tensors(path, FORMAT, "edits"))


def unpack_edits(path: str, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Edits:
    """The edits from the content of the file at ``path``."""
    try:
        about = enumerate(json.loads(metadata["edits"]))
        return Edits([_read_edit(item, tensors, number) for number, item in about])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"path: {path!r} holds damaged edits ({type(error).__name__}: {error}); save them again"
        ) from None


def _read_edit(item: dict[str, Any], tensors: Mapping[str, Tensor], number: int) -> RankOneEdit:
    edit = RankOneEdit(
        layer=str(item["layer"]),
        left=tensors[f"{number}.left"],
        right=tensors[f"{number}.right"],
        shape=tuple(int(size) for size in item["shape"]),
        direction=str(item["direction"]),
        ridge=float(item["ridge"]),
        key_space=str(item["key_space"]),
        solved_for=str(item["solved_for"]),
        refined=bool(item.get("refined", False)),
    )
    if not bool(torch.isfinite(edit.delta).all()):
        raise ValueError(f"the update of layer {edit.layer!r} is NaN or infinite")
    return edit
