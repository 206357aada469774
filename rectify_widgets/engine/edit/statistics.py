"""Second moments of the keys of every editable layer, from one streaming pass.

Imports torch and, for the bytes of weights, numpy.  Memory is constant in the number of references.
Statistics remember the weights upstream of each layer, so that stale ones are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_choice, check_int, check_type
from rectify_widgets.engine.base.files import read_tensors, write_tensors
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.base.ranks import ALONE, Ranks, check_distributed
from rectify_widgets.engine.data.inputs import Inputs, batches, count_inputs
from rectify_widgets.engine.edit.moments import MomentSum
from rectify_widgets.engine.model.catalog import LayerCatalog, editable_layers
from rectify_widgets.engine.model.flow import Flow
from rectify_widgets.engine.model.keys import KEY_SPACES, SOME_ONLY, EditableLayer
from rectify_widgets.engine.model.memory import check_limit, collect_chunk, measure_sizes
from rectify_widgets.engine.model.running import (
    capturing,
    chunk_size,
    eval_mode,
    model_device,
    model_dtype,
    predict,
    unwrap,
)

BATCH = 64
"""References whose positions are sampled together."""
_FORMAT = "rectify_widgets.key_statistics.1"


@dataclass(frozen=True)
class LayerStatistics:
    """Sums over the positions of one layer's reference keys."""

    total: Tensor
    """``G × K × K``, the sum of ``k kᵀ``."""
    positions: int
    """Positions that went into the sum."""
    fingerprint: str
    """Digest of all weights and buffers upstream of the layer."""

    @property
    def moment(self) -> Tensor:
        """Second moment ``C = E[k kᵀ]``, ``G × K × K``."""
        return self.total / max(self.positions, 1)

    def merge(self, name: str, other: LayerStatistics) -> LayerStatistics:
        """Statistics of both sets of references together."""
        if self.total.shape != other.total.shape:
            raise ValueError(
                f"other: layer {name!r} has keys of shape {tuple(other.total.shape)}, "
                f"want {tuple(self.total.shape)}"
            )
        if self.fingerprint != other.fingerprint:
            raise ValueError(
                f"other: layer {name!r} was collected with other weights upstream of it; "
                "collect both halves with the same model"
            )
        total = self.total + other.total.to(self.total)
        return LayerStatistics(total, self.positions + other.positions, self.fingerprint)


class KeyStatistics(Mapping[str, LayerStatistics]):
    """`LayerStatistics` by layer name, in network order.

    Example:
        >>> statistics = rw.KeyStatistics.collect(model, reference)
        >>> statistics
        KeyStatistics(3 layers, 96 references, patch keys)
        >>> rw.localize(model, pairs, statistics=statistics).best
        'classifier'
    """

    def __init__(
        self, layers: Mapping[str, LayerStatistics], *, key_space: str, references: int
    ) -> None:
        self._layers = dict(layers)
        self.key_space = check_choice("key_space", key_space, KEY_SPACES)
        self.references = references

    def __getitem__(self, name: str) -> LayerStatistics:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return (
            f"KeyStatistics({len(self)} layers, {self.references} references, "
            f"{self.key_space} keys)"
        )

    @classmethod
    def collect(
        cls,
        model: nn.Module,
        reference: Inputs,
        layers: Iterable[str] | None = None,
        *,
        key_space: str = "patch",
        positions: int | None = None,
        batch_size: int = BATCH,
        memory_limit: int | None = None,
        seed: int = 0,
        distributed: bool = False,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> KeyStatistics:
        """Stream the references through the model once and sum ``k kᵀ`` of the named layers.

        Args:
            model: the classifier; left as it was.
            reference: unlabelled inputs (a tensor, a data set or a loader; labels are ignored).
            layers: dotted names; ``None`` means every editable layer.
            key_space: ``"patch"`` (unfolded input patches) or ``"channel"`` (per-pixel channels).
            positions: positions taken at random from each input; ``None`` takes 64, or as many as
                give eight positions for each number of the key where references are few.
            batch_size: inputs whose positions are sampled together, in one forward pass unless
                memory is short (a loader brings its own).
            memory_limit: bytes to keep to, see `estimate_memory`; the sums are the same.
            seed: of the sampling of positions.
            distributed: divide the references among the processes of ``torch.distributed``, every
                one of which makes this call; see `rectify_widgets.engine.base.ranks`.
            progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

        Raises:
            TypeError, ValueError: bad input, or a layer that cannot be edited.
            Cancelled: ``cancel`` returned True.
        """
        check_choice("key_space", key_space, KEY_SPACES)
        check_int("batch_size", batch_size, low=1)
        check_int("seed", seed, low=0)
        if positions is not None:
            check_int("positions", positions, low=1)
        monitor = Monitor(progress, cancel)
        limit = check_limit(memory_limit)
        ranks = check_distributed(distributed)
        with ExitStack() as stack:
            with ranks.together():
                module = stack.enter_context(eval_mode(model, "reference"))
                example = next(batches("reference", reference, batch_size))
                catalog = editable_layers(module, example)
                chosen = catalog.select("layers", layers)
                chunk = None
                if limit is not None:
                    like = example[:1].to(device=model_device(module), dtype=model_dtype(module))
                    sizes = measure_sizes(module, chosen, like)
                    chunk = collect_chunk(sizes, chosen, len(example), limit)
            return collect(
                module, reference, catalog, chosen, key_space=key_space, positions=positions,
                batch_size=batch_size, chunk=chunk, seed=seed, monitor=monitor, ranks=ranks,
            )  # fmt: skip

    def merge(self, other: KeyStatistics) -> KeyStatistics:
        """Statistics of two disjoint sets of references as if collected in one pass.

        Raises:
            TypeError, ValueError: other layers, key space, shapes or upstream weights.
        """
        check_type("other", other, KeyStatistics, "KeyStatistics")
        if self.key_space != other.key_space:
            raise ValueError(f"other: got {other.key_space!r} keys, want {self.key_space!r}")
        if set(self) != set(other):
            raise ValueError(
                f"other: got layers {sorted(other)}, want the same layers {sorted(self)}"
            )
        merged = {name: part.merge(name, other[name]) for name, part in self.items()}
        total = self.references + other.references
        return KeyStatistics(merged, key_space=self.key_space, references=total)

    def updated(self, newer: KeyStatistics) -> KeyStatistics:
        """These statistics with the layers of ``newer`` in place of their own."""
        layers = {**self._layers, **newer._layers}
        return KeyStatistics(layers, key_space=self.key_space, references=self.references)

    def check_space(self, key_space: str) -> None:
        """Refuse statistics in another key space."""
        if self.key_space != key_space:
            raise ValueError(f"statistics: got {self.key_space!r} keys, want {key_space!r} keys")

    def check(self, model: nn.Module, catalog: LayerCatalog, names: Iterable[str]) -> None:
        """Refuse statistics that are missing, of another shape, or stale for ``names``.

        Raises:
            ValueError: naming the layers.
        """
        names = list(names)
        if missing := [name for name in names if name not in self]:
            raise ValueError(
                f"statistics: none for layer {', '.join(map(repr, missing))}; "
                "collect them with layers=None or with these names"
            )
        current = fingerprints(model, catalog, names)
        stale = [name for name in names if self[name].fingerprint != current[name]]
        if stale:
            raise ValueError(
                f"statistics: stale for layer {', '.join(map(repr, stale))}, since weights upstream "
                "have changed (an edit, or another model); collect them again for this model"
            )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file.

        Raises:
            TypeError, FileNotFoundError: not a path, or no such folder.
        """
        about = {
            name: {"positions": part.positions, "fingerprint": part.fingerprint}
            for name, part in self.items()
        }
        size = {"key_space": self.key_space, "references": str(self.references)}
        metadata = {**size, "layers": json.dumps(about)}
        tensors = {name: part.total for name, part in self.items()}
        write_tensors(path, _FORMAT, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> KeyStatistics:
        """Read a file written by `save`.

        Raises:
            TypeError, FileNotFoundError: not a path, or no such file.
            ValueError: the file is not one of key statistics, or it is damaged.
        """
        metadata, tensors = read_tensors(path, _FORMAT, "key statistics")
        try:
            layers = {
                name: LayerStatistics(tensors[name], int(it["positions"]), str(it["fingerprint"]))
                for name, it in json.loads(metadata["layers"]).items()
            }
            references = int(metadata["references"])
            return cls(layers, key_space=metadata["key_space"], references=references)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"path: {str(path)!r} holds damaged key statistics ({type(error).__name__}: "
                f"{error}); collect them again"
            ) from None


def collect(
    model: nn.Module,
    reference: Inputs,
    catalog: LayerCatalog,
    chosen: Mapping[str, EditableLayer],
    *,
    key_space: str = "patch",
    positions: int | None = None,
    batch_size: int = BATCH,
    chunk: int | None = None,
    seed: int,
    monitor: Monitor,
    ranks: Ranks = ALONE,
) -> KeyStatistics:
    """The streaming pass behind `KeyStatistics.collect`, on chosen layers, ``chunk`` samples at a time.

    Where a device runs out of memory, the pass starts again with half of them.
    """
    total_inputs = count_inputs(reference)
    expected = total_inputs or batch_size
    sums: dict[str, MomentSum] = {}
    flow = Flow(chosen)
    samples = number = 0

    def add(name: str, inputs: Tensor, _: Tensor) -> None:
        monitor.check()
        flow.see(name, inputs)
        refuse_uneven(name)
        sums[name].add(inputs, samples, number)

    def refuse_uneven(name: str) -> None:
        if flow.uneven(name):
            raise ValueError(f"layers: {name!r} cannot be edited: {SOME_ONLY}; leave it out")

    def once(module: nn.Module, chunk: int | None) -> int:
        nonlocal samples, number, flow
        flow = Flow(chosen)
        done, number = 0, ranks.rank
        for name, layer in chosen.items():
            sums[name] = MomentSum(layer, key_space, positions, expected, seed)
        device, dtype = model_device(module), model_dtype(module)
        for batch in batches("reference", reference, batch_size, ranks=ranks):
            for piece in batch.split(chunk or chunk_size(batch, device)):
                share = done * ranks.size / total_inputs if total_inputs else 0.0
                monitor.report(share, "collecting keys")
                samples = len(piece)
                flow.begin(samples)
                predict(module, piece.to(device=device, dtype=dtype))
                done += samples
                for name in chosen:  # those that were not called
                    refuse_uneven(name)
            number += ranks.size
        return done

    def fitting(module: nn.Module, chunk: int | None) -> int:
        # A pass that runs out of memory has added to some sums and not to others: start all again.
        try:
            return once(module, chunk)
        except torch.OutOfMemoryError:
            if samples <= 1:
                raise
            chunk = samples // 2
        torch.cuda.empty_cache()  # not while the error is handled, whose frames hold tensors
        return fitting(module, chunk)

    with ranks.together(), eval_mode(model) as module:
        digests = fingerprints(module, catalog, chosen)
        with capturing({name: layer.module for name, layer in chosen.items()}, add):
            done = fitting(module, chunk)
        monitor.report(1.0, "collected keys")
    ranks.check_same("model", " ".join(digests.values()), "its weights")
    layers = {}
    for name in chosen:
        total = ranks.sum(sums[name].total())
        layers[name] = LayerStatistics(total, ranks.add(sums.pop(name).count), digests[name])
        # Any number of a key that is not finite makes its square on the diagonal so.
        if not bool(torch.isfinite(total.diagonal(dim1=1, dim2=2)).all()):
            raise ValueError(
                f"model: the inputs of layer {name!r} are NaN or infinite on the references; "
                "want a model with finite activations"
            )
    return KeyStatistics(layers, key_space=key_space, references=ranks.add(done))


def fingerprints(model: nn.Module, catalog: LayerCatalog, names: Iterable[str]) -> dict[str, str]:
    """Digest of everything upstream of each named layer."""
    module = unwrap(model)
    digests = {
        name: _digest((*part.parameters(recurse=False), *part.buffers(recurse=False)))
        for name, part in module.named_modules()
    }
    upstream = {
        name: b"".join(part.encode() + digests[part] for part in catalog.upstream[name])
        for name in names
    }
    return {name: blake2b(whole, digest_size=16).hexdigest() for name, whole in upstream.items()}


def _digest(tensors: Iterable[Tensor]) -> bytes:
    digest = blake2b(digest_size=16)
    for tensor in tensors:
        if not nn.parameter.is_lazy(tensor):
            digest.update(weight_bytes(tensor))
    return digest.digest()


def weight_bytes(tensor: Tensor) -> bytes:
    """The values of a tensor as bytes, independent of its device and memory format."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
