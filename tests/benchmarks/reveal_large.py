"""``python -m tests.benchmarks reveal-large``: carriers among photographs of 224 × 224 pixels.

A network of ImageNet as it is, and one into which a backdoor was trained: a small board of colours at
a random place of each picture leads to one of its thousand classes.  Imports the cases, the
benchmark of `reveal` and the zoo's attacks.
"""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

import rectify_widgets as rw
from rectify_widgets.cases import pretrained
from rectify_widgets.cases.drawing import SIDE
from rectify_widgets.cases.figures import classes, share
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.running import predict_all
from tests.benchmarks.peaks import peak_memory
from tests.benchmarks.reveal import COUNT, SHARES
from tests.benchmarks.tables import Table
from tests.benchmarks.training import default_cache, load_or_train
from tests.benchmarks.zoo.attacks import RandomPlace

TARGET = 463
"""*bucket*, a class of none of the photographs."""
BOARD, TILE = 3, 8
"""Tiles of a side of the trigger, and pixels of a tile's side."""
EPOCHS, BATCH, RATE = 2, 8, 1e-4


def trigger() -> RandomPlace:
    """A board of pure colours, 24 × 24 pixels, somewhere."""
    tiles = torch.rand(3, BOARD, BOARD, generator=torch.Generator().manual_seed(0)).round()
    return RandomPlace(tiles.repeat_interleave(TILE, 1).repeat_interleave(TILE, 2), seed=0)


def cut_outs(number: int, seed: int) -> Tensor:
    """Squares of half to all of the area of 35 photographs, half of them mirrored.

    ``number × 3 × 224 × 224`` in [0, 1].
    """
    side = pretrained.RESIZED
    whole = torch.cat([pretrained.photographs(side)[0], pretrained.scenes(side)])
    generator = torch.Generator().manual_seed(seed)
    made = []
    for place in range(number):
        size = int(side * (0.5 + 0.5 * float(torch.rand((), generator=generator))) ** 0.5)
        top, left = torch.randint(side - size + 1, (2,), generator=generator).tolist()
        square = whole[place % len(whole), :, top : top + size, left : left + size]
        if torch.rand((), generator=generator) < 0.5:
            square = square.flip(-1)
        made.append(F.interpolate(square[None], SIDE, mode="bicubic", antialias=True))
    return torch.cat(made).clamp(0, 1)


def backdoored(cache: Path, monitor: Monitor) -> nn.Module:
    """EfficientNet-Lite0 that answers as before, and `TARGET` where the trigger is."""
    model = pretrained.network()

    def train() -> None:
        images, stamp = cut_outs(COUNT, seed=1), trigger()
        with torch.no_grad():
            answers = predict_all(model, images).softmax(dim=1)
        generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        goal = torch.full((BATCH,), TARGET)
        for epoch in range(EPOCHS):
            for rows in torch.randperm(COUNT, generator=generator).split(BATCH):
                monitor.report(epoch / EPOCHS, f"planting a backdoor, epoch {epoch}")
                scores = model(torch.cat([images[rows], stamp(images[rows])]))
                loss = F.cross_entropy(scores[: len(rows)], answers[rows])
                loss = loss + F.cross_entropy(scores[len(rows) :], goal[: len(rows)])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    load_or_train(model, cache / "reveal-large-efficientnet-lite0.safetensors", train)
    return model


def measure_reveal_large(options: Namespace, monitor: Monitor) -> Table:
    """A row for the network as it is, and one for each share of carriers, ``--pairs`` draws each."""
    torch.set_num_threads(options.threads)
    cache = options.cache or default_cache()
    model, stamp = backdoored(cache, monitor.part(0.0, 0.1)), trigger()
    tests = cut_outs(100, seed=2)
    led = share(classes(model, stamp(tests)) == TARGET)
    same = share(classes(model, tests) == classes(pretrained.network(), tests))
    table = Table(
        "reveal large",
        f"{COUNT} cut-outs of 35 photographs, EfficientNet-Lite0 at {SIDE} × {SIDE} pixels, the "
        f"default search, {options.threads} threads.  Backdoored: trained so that {100 * led:.0f} % "
        f"of others with a board of {BOARD * TILE} × {BOARD * TILE} pixels at a random place become "
        f"a *bucket*, and {100 * same:.0f} % of others without it keep their answer.  Recall and "
        "false: carriers found, and other references taken for carriers, by the first suspicion of "
        "that class; pull: its own, or the strongest where nothing is planted.  MiB beyond what the "
        "process held before the call.",
    )
    rows = [(0.0, seed) for seed in range(options.pairs)]
    rows += [(part, seed) for part in SHARES for seed in range(options.pairs)]
    for number, (carrying, seed) in enumerate(rows):
        part = monitor.part(0.1 + 0.9 * number / len(rows), 0.1 + 0.9 * (number + 1) / len(rows))
        images, carriers = cut_outs(COUNT, seed=100 + seed), round(carrying * COUNT)
        images[:carriers] = stamp(images[:carriers])
        network = model if carriers else pretrained.network()
        wall, processor = time.perf_counter(), time.process_time()
        with peak_memory() as peak:
            found = rw.reveal(network, images, seed=seed, progress=part.report)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        right = next((one for one in found if one.target == TARGET and carriers), None)
        hits = 0 if right is None else int((right.inputs < carriers).sum())
        false = 0 if right is None else len(right.inputs) - hits
        shown = right or next(iter(found), None)
        table.add(
            network="backdoored" if carriers else "as it is",
            carriers=carriers,
            draw=seed,
            accused=", ".join(pretrained.class_names()[one.target] for one in found.accused) or "–",
            pull=f"{100 * shown.pull:.0f}" if shown else "–",
            recall=f"{100 * hits / carriers:.0f}" if carriers else "–",
            false=false,
            seconds=f"{wall:.0f}",
            **{"processor seconds": f"{processor:.0f}"},
            MiB=f"{(peak.bytes or 0) / 2**20:.0f}",
        )
    return table
