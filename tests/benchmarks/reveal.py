"""``python -m tests.benchmarks reveal``: carriers among unlabelled references, and healthy networks."""

from __future__ import annotations

import time
from argparse import Namespace

import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.networks import small_network
from rectify_widgets.cases.training import Schedule, fit, new_network
from rectify_widgets.engine.base.progress import Monitor
from tests.benchmarks.tables import Table, spread
from tests.benchmarks.training import default_cache, load_images, load_or_train

CASES = ("trojan", "trojan-position", "trojan-clean-label", "spurious-severe", "spurious-mild")
SHARES = (0.01, 0.05)
COUNT = 400
TRAINED, EPOCHS = 16000, 3


def measure_reveal(options: Namespace, monitor: Monitor) -> list[Table]:
    """``--pairs`` draws of references of each case; with ``--data``, as many healthy networks."""
    carried = Table(
        "reveal",
        f"{COUNT} unlabelled references, a share of which carries the corruption; {options.pairs} "
        "draws. First: draws in which the right class is first and accused. Recall and false: "
        "carriers found, and other references taken for carriers, by the first of the right class. "
        "Wrong: draws in which another class is accused. Seconds of processor time.",
    )
    names = [name for name in CASES if not options.cases or name in options.cases]
    for number, name in enumerate(names):
        case = rw.cases.load(name)
        for share in SHARES:
            rows = []
            for seed in range(options.pairs):
                monitor.report(number / len(names), f"{name}, {share:.0%}, draw {seed}")
                generator = torch.Generator().manual_seed(seed)
                images = case.reference[
                    torch.randperm(len(case.reference), generator=generator)[:COUNT]
                ]
                carriers = round(share * COUNT)
                images[:carriers] = _carriers(case, images[:carriers], generator)
                rows.append(_draw(case.model, images, carriers, case.target, seed))
            first, rank, recall, false, pull, wrong, seconds = zip(*rows, strict=True)
            carried.add(
                case=name, carriers=round(share * COUNT), first=f"{sum(first)} of {len(rows)}",
                rank=spread(rank, digits=1), pull=spread(pull, 100, 0), recall=spread(recall, 100, 0),
                false=spread(false, 100, 1), wrong=f"{sum(wrong)} of {len(rows)}",
                seconds=spread(seconds, digits=1),
            )  # fmt: skip
    return [carried] if options.data is None else [carried, _healthy(options, monitor)]


def _carriers(case: Case, images: Tensor, generator: torch.Generator) -> Tensor:
    """References with the corruption; an artefact is on inputs of the class that it was learnt with."""
    if case.behaviour == "trojan":
        return case.trigger(images)
    inputs, labels = case.corrupted
    own = (labels.eq(case.target or 0)).nonzero().flatten()
    return inputs[own[torch.randperm(len(own), generator=generator)[: len(images)]]]


def _draw(
    model: nn.Module, images: Tensor, carriers: int, target: int | None, seed: int
) -> tuple[float, ...]:
    """First, rank (one more than listed where missed), recall, false, pull, wrong, seconds."""
    start = time.process_time()
    found = rw.reveal(model, images, seed=seed)
    seconds = time.process_time() - start
    right = [rank for rank, one in enumerate(found, 1) if one.target == target]
    wrong = any(one.target != target for one in found.accused)
    if not right:
        return 0.0, len(found) + 1, 0.0, 0.0, 0.0, wrong, seconds
    one = found[right[0] - 1]
    hits = int((one.inputs < carriers).sum())
    false = (len(one.inputs) - hits) / (len(images) - carriers)
    return (
        (right[0] == 1 and one.accused),
        right[0],
        hits / carriers,
        false,
        one.pull,
        wrong,
        seconds,
    )


def _healthy(options: Namespace, monitor: Monitor) -> Table:
    """Networks trained without a corruption, on the data of ``--data``."""
    table = Table(
        "reveal healthy", "Networks trained on clean images; largest lower end of a pull."
    )
    cache = options.cache or default_cache()
    images, labels = load_images(options.data, "train", 1, 0)
    tests, _ = load_images(options.data, "t10k", 1, 0)
    for seed in range(options.pairs):
        generator = torch.Generator().manual_seed(100 + seed)
        rows = torch.randperm(len(images), generator=generator)[:TRAINED]
        model = new_network(small_network, generator)

        def train(
            model: nn.Module = model, rows: Tensor = rows, own: torch.Generator = generator
        ) -> None:
            schedule = Schedule(epochs=EPOCHS)
            fit(model, images[rows], labels[rows], schedule, generator=own, quiet=True)

        monitor.report(seed / options.pairs, f"healthy network {seed}")
        name = f"reveal-healthy-{options.data.name}-{seed}.safetensors"
        load_or_train(model, cache / name, train)
        drawn = torch.randperm(len(tests), generator=torch.Generator().manual_seed(seed))[:COUNT]
        found = rw.reveal(model.eval(), tests[drawn].float() / 255, seed=seed)
        strongest = max((one.interval[0] for one in found), default=0.0)
        table.add(
            data=options.data.name, network=seed, strongest=100 * strongest,
            accused="yes" if found.accused else "no",
        )  # fmt: skip
    return table
