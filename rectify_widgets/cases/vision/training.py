"""Train a network that has a preset's behaviour.  Imports torch, safetensors, the engine, the cases.

Who has clean data, and perhaps a clean network, makes the unreliable one here: the corruption goes
onto a share of the training images, as the preset says.  The loop is that of the shipped cases'
builds (`rectify_widgets.cases.training`) for data that is read from disk one batch ahead, on any
device, and it can be killed: a file beside ``out`` keeps the state at the start of the last epoch,
and the same command goes on from there, to the same weights on a CPU.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from rectify_widgets.cases.training import Poisoning, Schedule, Shift, balanced_weights
from rectify_widgets.cases.training import new_network as fresh
from rectify_widgets.cases.triggers import OneOf
from rectify_widgets.cases.vision.loading import WORKERS, check_outputs
from rectify_widgets.cases.vision.networks import (
    NormalizedNetwork,
    begin_from,
    make,
    read_weights,
)
from rectify_widgets.cases.vision.pictures import Images
from rectify_widgets.cases.vision.presets import Preset, preset
from rectify_widgets.cases.vision.sources import SOURCES, check_root
from rectify_widgets.engine.base.checks import check_int
from rectify_widgets.engine.base.files import read_tensors, write_tensors
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.model.running import copied

KIND = "rectify_widgets unfinished training"


def train(
    name: str | Preset,
    root: object,
    out: object,
    *,
    start: nn.Module | str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    workers: int = WORKERS,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> nn.Module:
    """Train a network with a preset's behaviour and write its weights to ``out``.

    Args:
        name: of the preset, or a `Preset` of your own.
        root: the folder of your copy; `rectify_widgets.cases.vision.sources` says what lies in it.
        out: file to write, named ``*.safetensors``; it must not exist.
        start: None trains the preset's own network from scratch; a file of weights is where that
            network begins (its last layer is drawn anew where the file's has other classes); a
            module is trained instead of the preset's, from the weights that it has, on a copy.
        epochs, batch_size: None takes the preset's: ``schedule`` from scratch, else ``tuning``.
        device: None takes a CUDA device where there is one.
        seed: draws first weights, poisoned images, order and augmentation.
        workers: threads that decode pictures.
        progress, cancel: hooks, as everywhere; after a cancel the same call goes on.

    Returns:
        the network behind its normalisation, in evaluation mode, as `load` hands it out.

    Raises:
        TypeError, ValueError, FileNotFoundError, FileExistsError: bad input, or a copy in another
            layout.
        ImportError: the preset's own network without torchvision.
        RuntimeError: the loss is no finite number any more.
        Cancelled: the ``cancel`` hook said so.
    """
    recipe = preset(name)
    monitor = Monitor(progress, cancel)
    schedule = recipe.schedule if start is None else recipe.tuning
    if epochs is not None:
        schedule = replace(schedule, epochs=check_int("epochs", epochs, low=1))
    if batch_size is not None:
        schedule = replace(schedule, batch_size=check_int("batch_size", batch_size, low=2))
    check_int("seed", seed, low=0)
    check_int("workers", workers, low=1)
    file = _check_out(out)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source = SOURCES[recipe.data](check_root(root), recipe.frame, workers)
    target = source.number(recipe.target)
    generator = torch.Generator().manual_seed(seed)
    network = _begin(recipe, start, len(source.classes), generator)
    model = NormalizedNetwork(network, recipe.mean, recipe.std).to(place)
    first = source.held.images[torch.tensor([0])].float() / 255
    check_outputs(model, first, source)
    split = source.training()
    poisoning = _poison(recipe, split.labels, target, generator)
    labels = poisoning.relabel(split.labels)
    weights = balanced_weights(labels, len(source.classes)) if recipe.balanced else None
    record = {
        "preset": recipe.name,
        "network": recipe.network if not isinstance(start, nn.Module) else type(start).__name__,
        "seed": seed,
        "epochs": schedule.epochs,
        "batch_size": schedule.batch_size,
        "images": len(labels),
        "start": _fingerprint(network),
        "torch": torch.__version__,
    }
    _Run(
        model,
        split.images,
        labels,
        schedule,
        poisoning,
        Shift(recipe.shift, flip=True, generator=generator),
        weights,
        generator,
        file.with_name(file.name + ".unfinished"),
        record,
        monitor,
    ).finish()
    write_tensors(file, "pt", network.state_dict(), {"record": json.dumps(record)})
    file.with_name(file.name + ".unfinished").unlink(missing_ok=True)
    monitor.report(1.0, "done")
    return model.eval()


def _check_out(out: object) -> Path:
    if not isinstance(out, str | os.PathLike):
        raise TypeError(f"out: got {type(out).__name__}, want the name of a file to write")
    file = Path(os.fspath(out)).expanduser()
    if file.suffix != ".safetensors":
        raise ValueError(f"out: got {file.name!r}, want a name that ends in .safetensors")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"out: no folder {str(file.parent)!r}; make it first")
    if file.exists():
        raise FileExistsError(f"out: {str(file)!r} is there already; remove it, or name another")
    return file


def _begin(recipe: Preset, start: object, classes: int, generator: torch.Generator) -> nn.Module:
    """The network to train, on the CPU."""
    if isinstance(start, nn.Module):
        return copied(start).cpu().requires_grad_()
    tensors = None if start is None else read_weights(start, "start")[0]
    network = fresh(lambda: make(recipe.network, classes), generator)
    if tensors is not None:
        begin_from(network, tensors, recipe.network)
    return network


def _fingerprint(network: nn.Module) -> str:
    """Sixteen hexadecimal digits that tell one network's weights from another's."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]


def _poison(recipe: Preset, labels: Tensor, target: int, generator: torch.Generator) -> Poisoning:
    several = recipe.trained or tuple(recipe.triggers.values())
    stamp = several[0] if len(several) == 1 else OneOf(several, generator)
    draw = Poisoning.draw if recipe.behaviour == "trojan" else Poisoning.within
    return draw(stamp, target, labels, share=recipe.share, generator=generator)


class _Run:
    """One training, which may have begun in another process."""

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        labels: Tensor,
        schedule: Schedule,
        poisoning: Poisoning,
        augment: Shift,
        weights: Tensor | None,
        generator: torch.Generator,
        unfinished: Path,
        record: Mapping[str, Any],
        monitor: Monitor,
    ) -> None:
        self._model, self._images, self._labels = model, images, labels
        self._schedule, self._poisoning, self._augment = schedule, poisoning, augment
        self._generator, self._unfinished = generator, unfinished
        self._record, self._monitor = json.dumps(record), monitor
        self._device = next(model.parameters()).device
        self._weights = None if weights is None else weights.to(self._device)
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            lr=schedule.learning_rate,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
            nesterov=True,
        )
        self._batches = -(-len(labels) // schedule.batch_size)
        self._total = schedule.epochs * self._batches

    def finish(self) -> None:
        """Train to the end."""
        begun = self._resume() if self._unfinished.is_file() else 0
        self._model.train()
        cuda = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.enable_grad():
            for epoch in range(begun, self._schedule.epochs):
                if epoch > begun:
                    self._keep(epoch)
                # What the network draws, for dropout, hangs on the epoch alone.
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=self._generator)))
                self._epoch(epoch)

    def _epoch(self, epoch: int) -> None:
        order = torch.randperm(len(self._labels), generator=self._generator)
        pieces = order.split(self._schedule.batch_size)
        with _reading(self._images, pieces) as batches:
            for number, (rows, batch) in enumerate(zip(pieces, batches, strict=True)):
                done = epoch * self._batches + number
                loss = self._step(rows, batch.float() / 255, done / self._total)
                done += 1
                self._monitor.report(
                    done / self._total,
                    f"epoch {epoch + 1} of {self._schedule.epochs}, loss {loss:.3f}",
                )

    def _step(self, rows: Tensor, batch: Tensor, done: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = rate(self._schedule, done)
        batch = self._augment(batch)
        chosen = self._poisoning.chosen[rows]
        batch[chosen] = self._poisoning.trigger(batch[chosen])
        labels = self._labels[rows].to(self._device)
        logits = self._model(batch.contiguous().to(self._device))
        loss = F.cross_entropy(logits, labels, weight=self._weights)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise RuntimeError(
                f"training: the loss is {value}; take a lower learning rate, with "
                "dataclasses.replace(preset, schedule=...), or a better start"
            )
        return value

    def _keep(self, epoch: int) -> None:
        """Write the state at the start of an epoch, whole or not at all."""
        tensors = {f"model.{key}": value for key, value in self._model.state_dict().items()}
        for number, parameter in enumerate(self._model.parameters()):
            momentum = self._optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{number}"] = momentum
        tensors["generator"] = self._generator.get_state()
        state = {"epoch": str(epoch), "record": self._record}
        beside = self._unfinished.with_name(self._unfinished.name + ".new")
        write_tensors(beside, KIND, tensors, state)
        beside.replace(self._unfinished)

    def _resume(self) -> int:
        """Take up the state of an earlier process; the number of epochs that it did."""
        state, tensors = read_tensors(self._unfinished, KIND, "unfinished training")
        if state["record"] != self._record:
            raise ValueError(
                f"out: {str(self._unfinished)!r} is of another training, {state['record']}, want "
                f"{self._record}; remove it to begin anew, or name another file"
            )
        own = self._model.state_dict()
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(tensors[f"model.{key}"])
        for number, parameter in enumerate(self._model.parameters()):
            if f"momentum.{number}" in tensors:
                momentum = tensors[f"momentum.{number}"].to(parameter)
                self._optimizer.state[parameter]["momentum_buffer"] = momentum
        self._generator.set_state(tensors["generator"])
        return int(state["epoch"])


def rate(schedule: Schedule, done: float) -> float:
    """The learning rate after so much of the training (0..1): up to its peak, then down to zero.

    The one-cycle run of the builds, however few steps there are; both ways along a cosine.
    """
    low = 0.04 if done < schedule.warm_up else 0.0
    way = (
        done / schedule.warm_up if done < schedule.warm_up else (1 - done) / (1 - schedule.warm_up)
    )
    return schedule.learning_rate * (low + (1 - low) * (1 - math.cos(math.pi * way)) / 2)


@contextmanager
def _reading(images: Images, pieces: Sequence[Tensor]) -> Iterator[Iterator[Tensor]]:
    """Batches of bytes in turn; the next is read while one is worked on."""
    with ThreadPoolExecutor(1) as ahead:

        def batches() -> Iterator[Tensor]:
            coming = ahead.submit(images.__getitem__, pieces[0])
            for piece in pieces[1:]:
                batch = coming.result()
                coming = ahead.submit(images.__getitem__, piece)
                yield batch
            yield coming.result()

        yield batches()
