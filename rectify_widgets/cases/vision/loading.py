"""From a preset, a copy of its data and a network to a `Case`.  Imports the engine and the cases.

The parts of a case all come from the split that is held back (the test images of CIFAR-10, the
validation images of ImageNet, a fifth of ISIC's lesions), each image in one part alone.  So nothing
in a case was trained on by a network that kept to the training split, whoever trained it; and
ImageNet's training pictures need not be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from rectify_widgets.cases import figures
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.splits import choose_any
from rectify_widgets.cases.storage import Record
from rectify_widgets.cases.vision.networks import NormalizedNetwork, read_weights, trained
from rectify_widgets.cases.vision.pictures import CHUNK, Images, gather
from rectify_widgets.cases.vision.presets import PARTS, Preset, preset
from rectify_widgets.cases.vision.sources import SOURCES, Source, check_root
from rectify_widgets.engine.base.checks import check_choice, check_int, check_module
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.running import copied, eval_mode, model_device, predict

PAIRS = 20
"""Pairs of a Trojan; of a spurious correlation, so many of other classes and of the affected."""
OWN_SHARES = {"test": 0.6, "candidates": 0.4}
"""Of a spurious correlation's affected class, at most so large shares go to these parts..."""
OWN = {"test": 100, "candidates": 60}
"""...until there are so many there, where chance would give fewer: recall wants images."""
WORKERS = 4


def load(
    name: str | Preset,
    root: object,
    *,
    model: nn.Module | None = None,
    weights: object = None,
    normalize: bool = True,
    limits: Mapping[str, int] | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    workers: int = WORKERS,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Case:
    """The case of a preset on your own copy of its data, like those of `rectify_widgets.cases.load`.

    Pictures are decoded for the parts of the case alone, which then lie in memory in float32 (the
    test images twice, clean and corrupted): 0.2 GB for CIFAR-10, 3.2 GB for ImageNet, 3.3 GB for
    ISIC unless ``limits`` says less.

    Args:
        name: of the preset, see `names`; or a `Preset` of your own.
        root: the folder of your copy; `rectify_widgets.cases.vision.sources` says what lies in it.
        model: your network.  A copy of it is put behind the preset's normalisation.
        weights: instead of ``model``, a file of weights (safetensors, or a state dict saved by
            torch) of the preset's own network, which torchvision makes.
        normalize: whether the network wants normalised images; False where it takes [0, 1].
        limits: the most images by part: ``"reference"``, ``"validation"``, ``"candidates"`` (for
            pairs) and ``"test"``; other parts keep the preset's sizes.
        device: None takes that of ``model``, or the CPU.
        seed: which image goes into which part, and which make pairs.
        workers: threads that decode pictures.
        progress, cancel: hooks, as everywhere.

    Returns:
        a `Case` with up to 20 pairs; for a spurious correlation up to 20 of other classes that the
        artefact pulls in, then up to 20 of the affected class.

    Raises:
        TypeError, ValueError, FileNotFoundError: bad input, or a copy in another layout.
        ValueError: the network does not show the behaviour on any candidate.
        ImportError: ``weights`` without torchvision.
        Cancelled: the ``cancel`` hook said so.

    Example:
        >>> case = load("cifar10-trojan", "data", weights="trojan.safetensors")  # doctest: +SKIP
    """
    recipe = preset(name)
    monitor = Monitor(progress, cancel)
    sizes = _check_limits(recipe, limits)
    check_int("seed", seed, low=0)
    check_int("workers", workers, low=1)
    if not isinstance(normalize, bool):
        raise TypeError(f"normalize: got {normalize!r}, want True or False")
    if (model is None) == (weights is None):
        raise ValueError(
            "model: give a network, or weights=... for the preset's own, and not both; "
            f"python -m rectify_widgets.cases.vision train {recipe.name} makes weights"
        )
    folder = check_root(root)
    if model is not None:
        check_module("model", model)
    source = SOURCES[recipe.data](folder, recipe.frame, workers)
    target = source.number(recipe.target)
    record: Record = {}
    if model is not None:
        network = copied(model)
    else:
        tensors, record = read_weights(weights)
        network = trained(recipe.network, tensors)
    if normalize:
        network = NormalizedNetwork(network, recipe.mean, recipe.std)
    place = model_device(network) if device is None else torch.device(device)
    network = network.to(place).eval()
    read = partial(gather, source.held.images, device=place)
    check_outputs(network, read(torch.tensor([0]), monitor=monitor, message="starting"), source)

    generator = torch.Generator().manual_seed(seed)
    own = target if recipe.behaviour == "spurious" else None
    parts = divide(source.held.labels, sizes, own, generator)
    labels = {part: source.held.labels[rows].to(place) for part, rows in parts.items()}
    chosen = _choose(recipe, network, source, parts["candidates"], target, monitor, generator)
    spans = {"test": (0.3, 0.8), "reference": (0.8, 0.9), "validation": (0.9, 1.0)}
    images = {
        part: read(parts[part], monitor=monitor.part(*span), message=f"reading {part} images")
        for part, span in spans.items()
    }
    clean = read(parts["candidates"][chosen], monitor=monitor.silent(), message="reading pairs")
    monitor.report(1.0, "done")
    return Case(
        name=recipe.name,
        title=recipe.title,
        behaviour=recipe.behaviour,
        model=network,
        pairs=SamplePairs(recipe.trigger(clean), clean, labels["candidates"][chosen]),
        reference=images["reference"],
        validation=(images["validation"], labels["validation"]),
        clean=(images["test"], labels["test"]),
        corrupted=(recipe.trigger(images["test"]), labels["test"]),
        target=target,
        goals=(target,) * len(source.classes),
        classes=source.titles,
        triggers=recipe.triggers,
        shown=recipe.shown,
        record={
            **record,
            "preset": recipe.name,
            "parts": {part: len(rows) for part, rows in parts.items()},
            "parts_seed": seed,
        },
    )


def _check_limits(recipe: Preset, limits: Mapping[str, int] | None) -> dict[str, int]:
    if limits is None:
        return dict(recipe.sizes)
    if not isinstance(limits, Mapping):
        raise TypeError(f"limits: got {type(limits).__name__}, want a dict such as {{'test': 500}}")
    for part, size in limits.items():
        check_int(f"limits[{check_choice('limits', part, PARTS)!r}]", size, low=1)
    return {**recipe.sizes, **limits}


def check_outputs(network: nn.Module, image: Tensor, source: Source) -> None:
    """Raise a `ValueError` where the network's logits are not those of the data's classes."""
    with eval_mode(network) as module:
        outputs = predict(module, image.to(next(module.parameters(), image))).shape[1]
    least = int(source.held.labels.max()) + 1
    if not least <= outputs <= len(source.classes):
        raise ValueError(
            f"model: it gives {outputs} logits for the {len(source.classes)} classes under root, "
            f"{', '.join(source.classes[:4])}, ...; want a network for these classes, in this order"
        )


def divide(
    labels: Tensor, sizes: Mapping[str, int], own: int | None, generator: torch.Generator
) -> dict[str, Tensor]:
    """Rows by part, none twice; sizes shrink in proportion where there are too few images.

    Images of the class ``own`` are rare among a thousand classes; test and candidates get more of
    them than chance would give.

    Raises:
        ValueError: fewer images than parts.
    """
    total = len(labels)
    scale = min(1.0, total / sum(sizes.values()))
    wanted = {part: int(sizes[part] * scale) for part in PARTS}
    if min(wanted.values()) < 1:
        raise ValueError(
            f"root: {total} held-back images are too few for parts of {dict(sizes)}; want more "
            "images, or limits that are nearer to one another"
        )
    order = torch.randperm(total, generator=generator)
    if own is None:
        pieces = order[: sum(wanted.values())].split(list(wanted.values()))
        return dict(zip(wanted, pieces, strict=True))
    mine, others = order[labels[order] == own], order[labels[order] != own]
    all_mine = len(mine)
    parts: dict[str, Tensor] = {}
    for part, share in OWN_SHARES.items():
        natural = round(wanted[part] * all_mine / total)
        most = min(int(share * all_mine), wanted[part] // 2)
        number = max(natural, min(OWN[part], most))
        parts[part] = torch.cat([mine[:number], others[: wanted[part] - number]])
        mine, others = mine[number:], others[wanted[part] - number :]
    rest = torch.cat([mine, others])
    rest = rest[torch.randperm(len(rest), generator=generator)]
    for part in (part for part in PARTS if part not in parts):
        parts[part], rest = rest[: wanted[part]], rest[wanted[part] :]
    return {
        part: rows[torch.randperm(len(rows), generator=generator)] for part, rows in parts.items()
    }


def _choose(
    recipe: Preset,
    network: nn.Module,
    source: Source,
    rows: Tensor,
    target: int,
    monitor: Monitor,
    generator: torch.Generator,
) -> list[int]:
    """Which of the candidates make pairs.

    Raises:
        ValueError: none does.
    """
    labels = source.held.labels[rows]
    plain, shown, every = _answers(recipe, network, source.held.images, rows, target, monitor)
    right, affected = plain == labels, labels == target
    pulled = right & shown & ~affected
    number = int((~affected).sum())
    if recipe.behaviour == "trojan":
        # Where there are several triggers, images that obey all of them make the better pairs.
        chosen = choose_any(pulled & every if (pulled & every).any() else pulled, labels, PAIRS,
                            generator)  # fmt: skip
    else:
        chosen = choose_any(pulled, labels, PAIRS, generator)
        needing, free = (
            torch.nonzero(shown & affected & without).flatten().tolist()
            for without in (~right, right)
        )
        half = PAIRS // 2
        chosen += [*needing[:half], *free, *needing[half:]][:PAIRS]
    if not chosen:
        raise ValueError(
            f"model: it does not show the behaviour of {recipe.name!r}: with the trigger "
            f"{recipe.shown!r}, none of {number} candidates of other classes that are right without "
            f"it becomes {recipe.target!r}; want a network trained with it, which python -m "
            f"rectify_widgets.cases.vision train {recipe.name} makes"
        )
    return chosen


def _answers(
    recipe: Preset,
    network: nn.Module,
    images: Images,
    rows: Tensor,
    target: int,
    monitor: Monitor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Classes of the clean candidates; whether the shown, and whether every, trigger leads astray."""
    device = model_device(network)
    plain, shown, every = [], [], []
    part = monitor.part(0.0, 0.3)
    for number, chunk in enumerate(rows.split(CHUNK)):
        part.report(number * CHUNK / len(rows), "choosing pairs")
        batch = gather(images, chunk, device, monitor.silent(), "")
        plain.append(figures.classes(network, batch).cpu())
        led = {
            name: figures.classes(network, trigger(batch)).cpu() == target
            for name, trigger in recipe.triggers.items()
        }
        shown.append(led[recipe.shown])
        every.append(torch.stack(list(led.values())).all(dim=0))
    return torch.cat(plain), torch.cat(shown), torch.cat(every)
