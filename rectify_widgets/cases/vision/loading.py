"""From a preset and a copy of its data to a network (`train`), and with that to a `Case` (`load`).

Imports the engine and the cases.  The parts of a case all come from the split that is held back,
each image in one part alone.  So a network that was trained on the training split, here or elsewhere,
has seen no image of a case; and ImageNet's training pictures need not be there.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rectify_widgets.cases.case import Case
from rectify_widgets.cases.definition import assemble
from rectify_widgets.cases.networks import Normalization
from rectify_widgets.cases.storage import CaseImages
from rectify_widgets.cases.training import Images, new_network
from rectify_widgets.cases.vision.presets import PARTS, Preset, preset
from rectify_widgets.cases.vision.sources import Source, as_path, open_source
from rectify_widgets.engine.base.checks import check_int, check_module
from rectify_widgets.engine.base.files import write_tensors
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.model.running import (
    copied,
    eval_mode,
    model_device,
    model_dtype,
    predict,
)

CHUNK = 32
"""Pictures read between two questions whether to stop."""
OWN = {"test": (0.6, 100), "pairs": (0.4, 60)}
"""Of a spurious correlation's affected class, these parts get at most such a share, until there are
so many there, where chance would give fewer: recall wants images."""


def load(
    name: str | Preset,
    root: object,
    *,
    model: nn.Module | None = None,
    weights: object = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Case:
    """The case of a preset on your own copy of its data, like those of `rectify_widgets.cases.load`.

    Its images lie in memory in float32 (the test images twice, clean and corrupted): 0.2 GB for
    CIFAR-10, 3.8 GB for ImageNet, 4.3 GB for ISIC; replace the ``sizes`` of the preset for less.

    Args:
        name: of the preset, see `names`; or a `Preset` of your own.
        root: the folder of your copy; `rectify_widgets.cases.vision.sources` says what lies in it.
        model: your network, which takes images normalised as the preset says; a copy is used.
        weights: instead of ``model``, a safetensors file of the preset's own network.
        device: None takes that of ``model``, or the CPU.
        seed: which image goes into which part, and which make pairs.
        progress, cancel: hooks, as everywhere.

    Raises:
        TypeError, ValueError, FileNotFoundError: bad input, a copy in another layout, or a network
            that does not show the behaviour.
        ImportError, Cancelled: torchvision does not load; the ``cancel`` hook said so.

    Example:
        >>> case = load("cifar10-trojan", "data", weights="trojan.safetensors")  # doctest: +SKIP
    """
    recipe, monitor = preset(name), Monitor(progress, cancel)
    generator = torch.Generator().manual_seed(check_int("seed", seed, low=0))
    if (model is None) == (weights is None):
        raise ValueError(
            "model: give a network, or weights=... for the preset's own, and not both; "
            f"python -m rectify_widgets.cases.vision train {recipe.name} makes weights"
        )
    source = open_source(recipe, root)
    recipe = recipe.resolve(source.classes)
    if model is None:
        network = with_weights(recipe.network, weights, "weights")
    else:
        network = copied(check_module("model", model))
    network = normalized(network, recipe.mean, recipe.std).eval()
    place = model_device(network) if device is None else torch.device(device)
    check_outputs(network.to(place), source)
    images, labels = source.held
    own = recipe.target if recipe.behaviour == "spurious" else None
    parts = divide(labels, recipe.sizes, own, generator)
    read = {}
    for number, (part, rows) in enumerate(parts.items()):
        span = monitor.part(number / 5, (number + 1) / 5)
        read[part] = gather(images, rows, place, span, part), labels[rows].to(place)
    monitor.report(0.8, "choosing pairs")
    pairs = recipe.choose_pairs(network, *read["pairs"], generator)
    sizes = {part: len(rows) for part, rows in parts.items()}
    record = {"preset": recipe.name, "seed": seed, "parts": sizes, "pairs": pairs}
    monitor.report(1.0, "done")
    uses = CaseImages(read["test"], read["reference"], read["validation"], read["pairs"])
    return assemble(recipe, network, uses, record)


def train(
    name: str | Preset,
    root: object,
    out: object,
    *,
    start: nn.Module | str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> nn.Module:
    """Train a network with a preset's behaviour and write its weights to ``out``.

    The corruption goes onto a share of your clean training images.

    Args:
        name, root, progress, cancel: as for `load`.
        out: file to write, named ``*.safetensors``; it must not exist.
        start: None trains the preset's own network from scratch, on its ``schedule``; a file of its
            weights, or a network of yours (of which a copy is trained), is tuned on its ``tuning``.
        device: None takes a CUDA device where there is one.
        seed: draws first weights, poisoned images, order and augmentation.

    Returns:
        the network in evaluation mode, as `load` takes it.

    Raises:
        TypeError, ValueError, OSError, ImportError, Cancelled: as for `load`, or no file to write.
        RuntimeError: the loss is not a finite number any more.
    """
    recipe, monitor = preset(name), Monitor(progress, cancel)
    generator = torch.Generator().manual_seed(check_int("seed", seed, low=0))
    file = _check_out(out)
    source = open_source(recipe, root)
    recipe = recipe.resolve(source.classes)
    if start is None:
        network = new_network(recipe.network, generator)
    elif isinstance(start, nn.Module):
        network = copied(start).requires_grad_()
    else:
        network = with_weights(recipe.network, start, "start")
    model = normalized(network, recipe.mean, recipe.std)
    check_outputs(model, source)
    images, labels = source.training()
    schedule = recipe.schedule if start is None else recipe.tuning
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with (
        torch.random.fork_rng(devices=[place] if place.type == "cuda" else []),
        torch.enable_grad(),
    ):
        torch.manual_seed(seed)  # what the network draws, for dropout
        replace(recipe, network=lambda: model, schedule=schedule).train(
            images, labels, generator, device=place, quiet=True, monitor=monitor
        )
    record = {"preset": recipe.name, "seed": seed, "epochs": schedule.epochs, "images": len(labels)}
    write_tensors(file, "pt", network.state_dict(), {"record": json.dumps(record)})
    return network.eval()


def _check_out(out: object) -> Path:
    file = as_path("out", out, "the name of a file to write")
    if file.suffix != ".safetensors" or not file.parent.is_dir():
        raise ValueError(f"out: got {str(file)!r}, want *.safetensors in a folder that is there")
    if file.exists():
        raise FileExistsError(f"out: {str(file)!r} is there already; remove it, or name another")
    return file


def check_outputs(network: nn.Module, source: Source) -> None:
    """Raise a `ValueError` where the network's logits are not those of the data's classes."""
    images, labels = source.held
    with eval_mode(network) as module:
        like = next(module.parameters(), torch.empty(0))
        first = images[torch.tensor([0])].to(like.device, like.dtype) / 255
        outputs = predict(module, first).shape[1]
    if not int(labels.max()) < outputs <= len(source.classes):
        raise ValueError(
            f"model: it gives {outputs} logits for the {len(source.classes)} classes under root, "
            f"{', '.join(source.classes[:4])}, ...; want a network for these, in this order"
        )


def gather(
    images: Images, rows: Tensor, device: torch.device, monitor: Monitor, part: str
) -> Tensor:
    """Images of these rows, ``N × C × H × W`` float32 in [0, 1], on ``device``."""
    shape = images[rows[:1]].shape[1:]
    # Filled bit by bit, since it may be most of what fits.
    whole = torch.empty(len(rows), *shape, dtype=torch.float32, device=device)
    for begin in range(0, len(rows), CHUNK):
        monitor.report(begin / len(rows), f"reading {part} images")
        whole[begin : begin + CHUNK] = images[rows[begin : begin + CHUNK]].to(device).float() / 255
    return whole


def divide(
    labels: Tensor, sizes: Mapping[str, int], own: int | None, generator: torch.Generator
) -> dict[str, Tensor]:
    """Rows by part, none twice; sizes shrink in proportion where there are too few images.

    Images of the class ``own`` are rare among a thousand classes; see `OWN`.

    Raises:
        ValueError: fewer images than parts.
    """
    total = len(labels)
    scale = min(1.0, total / sum(sizes.values()))
    wanted = {part: int(sizes[part] * scale) for part in PARTS}
    if min(wanted.values()) < 1:
        raise ValueError(
            f"root: {total} held-back images are too few for parts of {dict(sizes)}; want more "
            "images, or sizes that are nearer to one another"
        )
    rest = torch.randperm(total, generator=generator)
    every = int((labels == own).sum()) if own is not None else 0
    parts: dict[str, Tensor] = {}
    for part in sorted(PARTS, key=lambda one: one not in OWN):
        number = wanted[part]
        if every and part in OWN:
            share, enough = OWN[part]
            most = min(int(share * every), number // 2)
            first = max(round(number * every / total), min(enough, most))
            mine = labels[rest] == own
            rest = torch.cat([rest[mine][:first], rest[~mine], rest[mine][first:]])
        taken, rest = rest[:number], rest[number:]
        parts[part] = taken[torch.randperm(len(taken), generator=generator)]
    return parts


def normalized(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network behind the normalisation that it wants, so that triggers stay in [0, 1]."""
    normalize = Normalization(mean, std).to(model_device(network), model_dtype(network))
    return nn.Sequential(OrderedDict(normalize=normalize, network=network))


def with_weights(make_network: Callable[..., nn.Module], path: object, argument: str) -> nn.Module:
    """A network with the weights of a safetensors file.

    Raises:
        TypeError, FileNotFoundError, ValueError: no file of weights of such a network.
    """
    file = as_path(argument, path, "the name of a file")
    if not file.is_file():
        raise FileNotFoundError(f"{argument}: no file {str(file)!r}")
    with torch.device("meta"):  # no weights drawn: the random state stays as it is
        network = make_network()
    try:
        network.load_state_dict(load_file(file), assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{argument}: got {str(file)!r}, want a safetensors file of the preset's network "
            f"({error}); for another network give a module"
        ) from None
    return network.requires_grad_()
