"""``python -m tests.benchmarks reveal``: carriers among unlabelled references, and healthy networks."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.networks import small_network
from rectify_widgets.cases.training import Schedule, fit, new_network
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.reveal.suspicions import Suspicion
from tests.benchmarks.networks import plain_cnn
from tests.benchmarks.tables import Table, spread
from tests.benchmarks.training import default_cache, load_images, load_or_train
from tests.benchmarks.zoo.attacks import ATTACKS
from tests.benchmarks.zoo.training import train_zoo

SEARCHED = ("regions", "clusters")
HEALTHY: dict[str, tuple[Callable[[], nn.Module], Schedule, bool]] = {
    "residual": (small_network, Schedule(epochs=3), False),
    "plain-cnn": (plain_cnn, Schedule(6, learning_rate=3e-3), True),
}
"""How healthy networks are built and trained, and whether with AdamW."""
FIGURES = {
    "ASR": "attack_success_rate",
    "OA": "overall_accuracy",
    "right": "corrupted_accuracy",
}
COLUMNS = (
    "First: draws in which the right class is first and accused; first three: in which it is listed "
    "there, accused or not. Recall and false: carriers found, "
    "and other references taken for carriers, by the first of the right class. Wrong: draws in which "
    "another class is accused. Seconds of processor time."
)
CASES = ("trojan", "trojan-position", "trojan-clean-label", "spurious-severe", "spurious-mild")
SHARES = (0.01, 0.05)
COUNT = 400
THREE = 3
TRAINED = 16000


def measure_reveal(options: Namespace, monitor: Monitor) -> list[Table]:
    """``--pairs`` draws of references of each case; with ``--data``, as many healthy networks.

    With ``--networks`` attacked networks of the zoo instead, and with ``--methods dynamic`` a repair
    of each.
    """
    if options.networks:
        return [_of_the_zoo(options, monitor)]
    carried = Table(
        "reveal",
        f"{COUNT} unlabelled references, a share of which carries the corruption; {options.pairs} "
        f"draws. {COLUMNS}",
    )
    names = [name for name in CASES if not options.cases or name in options.cases]
    for number, name in enumerate(names):
        case = rw.cases.load(name)
        for share in SHARES:
            draws = []
            for seed in range(options.pairs):
                monitor.report(number / len(names), f"{name}, {share:.0%}, draw {seed}")
                images, carriers = drawn(case, share, seed, COUNT)
                draws.append(_draw(case.model, images, carriers, case.target, seed))
            carried.add(case=name, carriers=round(share * COUNT), **_columns(draws))
    return [carried] if options.data is None else [carried, _healthy(options, monitor)]


def _of_the_zoo(options: Namespace, monitor: Monitor) -> Table:
    """Clusters among all references of attacked networks, and repairs from them."""
    table = Table(
        "reveal zoo",
        "Clusters among 2,000 unlabelled references of an attacked network, a share of which carries "
        f"the attack; {options.pairs} draws. {COLUMNS} Form: what is carried, in the first draw. "
        "ASR, OA and right: attack success, overall and corrupted accuracy on 9,000 test images, "
        "before and after a repair from what the first draw found.",
    )
    runs = attacked(options)
    for number, (network, attack) in enumerate(runs):
        monitor.report(number / len(runs), f"{network}, {attack}")
        try:
            case = train_zoo(
                network, attack, options.data, options.network_seed, options.cache, quiet=True
            )
        except RuntimeError as error:  # it did not learn the attack
            print(error)
            continue
        for share in SHARES:
            draws = []
            for seed in reversed(range(options.pairs)):
                images, carriers = drawn(case, share, seed)
                draws.append(_draw(case.model, images, carriers, case.target, seed, "clusters"))
            found = rw.reveal(case.model, images, search="clusters")
            wanted = [one for one in found.accused if one.target == case.target]
            cells = dict.fromkeys(("form", *FIGURES), "–")
            if wanted and wanted[0].pairs is not None:
                cells["form"] = str(wanted[0].pairs.corrupt or "look-alikes")
            if wanted and options.methods == ["dynamic"] and share == max(SHARES):
                cells |= _repaired(case, images, wanted[0])
            table.add(network=network, attack=attack, carriers=carriers, **_columns(draws), **cells)
    return table


def _repaired(case: Case, images: Tensor, one: Suspicion) -> dict[str, str]:
    """Figures before and after a repair from a suspicion, without its carriers as references."""
    rest = torch.ones(len(images), dtype=torch.bool)
    rest[one.inputs] = False
    assert one.pairs is not None
    repaired = rw.rectify(case.model, one.pairs, reference=images[rest])
    before, after = case.figures(), case.figures(repaired.model)
    return {
        head: f"{100 * before[name]:.1f} → {100 * after[name]:.1f}"
        for head, name in FIGURES.items()
    }


def _columns(draws: Sequence[tuple[float, ...]]) -> dict[str, str]:
    """Cells of a table that sum draws up."""
    first, rank, recall, false, pull, wrong, seconds = zip(*draws, strict=True)
    return {
        "first": f"{int(sum(first))} of {len(draws)}",
        "first three": f"{sum(one <= THREE for one in rank)} of {len(draws)}",
        "rank": spread(rank, digits=1),
        "pull": spread(pull, 100, 0),
        "recall": spread(recall, 100, 0),
        "false": spread(false, 100, 1),
        "wrong": f"{sum(wrong)} of {len(draws)}",
        "seconds": spread(seconds, digits=1),
    }


def attacked(options: Namespace) -> list[tuple[str, str]]:
    """Networks and attacks of the zoo that are asked for, as far as they lead to one class."""
    attacks = [name for name in options.attacks or ATTACKS if len(set(ATTACKS[name].goals)) == 1]
    return [(network, attack) for network in options.networks or ["residual"] for attack in attacks]


def drawn(case: Case, share: float, seed: int, count: int | None = None) -> tuple[Tensor, int]:
    """References in a drawn order of which the first carry the corruption, and how many do."""
    generator = torch.Generator().manual_seed(seed)
    images = case.reference[torch.randperm(len(case.reference), generator=generator)[:count]]
    carriers = round(share * len(images))
    images[:carriers] = carriers_of(case, images[:carriers], generator)
    return images, carriers


def carriers_of(case: Case, images: Tensor, generator: torch.Generator) -> Tensor:
    """References with the corruption; an artefact is on inputs of the class that it was learnt with."""
    if case.behaviour == "trojan":
        return case.trigger(images)
    inputs, labels = case.corrupted
    own = (labels.eq(case.target or 0)).nonzero().flatten()
    return inputs[own[torch.randperm(len(own), generator=generator)[: len(images)]]]


def _draw(
    model: nn.Module,
    images: Tensor,
    carriers: int,
    target: int | None,
    seed: int,
    search: str = "carriers",
) -> tuple[float, ...]:
    """First, rank (one more than listed where missed), recall, false, pull, wrong, seconds."""
    start = time.process_time()
    found = rw.reveal(model, images, seed=seed, search=search)
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
        "reveal healthy",
        "Networks trained on clean images; largest lower end of a pull, of regions and of clusters, "
        "and smallest change over the median of the other classes.",
    )
    cache = options.cache or default_cache()
    images, labels = load_images(options.data, "train", 1, 0)
    tests, _ = load_images(options.data, "t10k", 1, 0)
    runs = [(kind, seed) for kind in HEALTHY for seed in range(options.pairs)]
    for number, (kind, seed) in enumerate(runs):
        generator = torch.Generator().manual_seed(100 + seed)
        rows = torch.randperm(len(images), generator=generator)[:TRAINED]
        build, schedule, adam = HEALTHY[kind]
        model = new_network(build, generator)

        def train(
            model: nn.Module = model,
            rows: Tensor = rows,
            own: torch.Generator = generator,
            schedule: Schedule = schedule,
            adam: bool = adam,
        ) -> None:
            rate = schedule.learning_rate
            optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
            fit(
                model, images[rows], labels[rows], schedule, generator=own, quiet=True,
                optimizer=optimizer if adam else None,
            )  # fmt: skip

        monitor.report(number / len(runs), f"healthy network {number}")
        name = f"reveal-healthy-{kind}-{options.data.name}-{seed}.safetensors"
        load_or_train(model, cache / name, train)
        drawn = torch.randperm(len(tests), generator=torch.Generator().manual_seed(seed))[:COUNT]
        given = tests[drawn].float() / 255
        found = {one: rw.reveal(model.eval(), given, seed=seed, search=one) for one in SEARCHED}
        strongest = {
            one: f"{100 * max((each.interval[0] for each in suspicions), default=0.0):.1f}"
            for one, suspicions in found.items()
        }
        changes = rw.smallest_changes(model, given, seed=seed)
        strongest["changes"] = f"{min(one.relative for one in changes):.2f}"
        accused = any(suspicions.accused for suspicions in found.values())
        accused = accused or any(one.accused for one in changes)
        table.add(
            data=options.data.name, network=f"{kind} {seed}", **strongest,
            accused="yes" if accused else "no",
        )  # fmt: skip
    return table
