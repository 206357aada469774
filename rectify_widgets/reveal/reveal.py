"""What is wrong with this model?  Searches that need neither a pair nor a label.

Imports the engine, and of this folder `references`, `transplant`, `clusters`, `carried`, `latent`,
`cleansing`, `smallest_change` and `suspicions`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_choice, check_int
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.corruption import data_range
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.measure.intervals import wilson
from rectify_widgets.engine.model.running import (
    eval_mode,
    model_device,
    model_dtype,
    predict_all,
    with_head,
)
from rectify_widgets.reveal.carried import carried
from rectify_widgets.reveal.cleansing import cleanse
from rectify_widgets.reveal.clusters import Cluster, find_clusters
from rectify_widgets.reveal.latent import LastLayer
from rectify_widgets.reveal.references import check_classes, check_scores, gather_references
from rectify_widgets.reveal.smallest_change import FEWEST as FEWEST_SEARCHED
from rectify_widgets.reveal.smallest_change import SmallestChange, smallest_changes
from rectify_widgets.reveal.suspicions import Suspicion, Suspicions
from rectify_widgets.reveal.transplant import FEW, MANY, RESEMBLING, Square, TransplantTest

ALL, CARRIERS, REGIONS, CLUSTERS, CHANGES = "all", "carriers", "regions", "clusters", "changes"
SEARCHES = (ALL, CARRIERS, REGIONS, CLUSTERS, CHANGES)
IN_TURN = {ALL: (REGIONS, CLUSTERS, CHANGES), CARRIERS: (REGIONS, CLUSTERS)}
"""Searches of which each is made where those before it accuse nothing."""
COST = {REGIONS: 19, CLUSTERS: 1, CHANGES: 40}
"""Time that each takes on small inputs, relative to one another, for the progress bar."""
FEWEST = 32
"""References that are needed."""
MOST = 6
"""Suspicions that are listed."""
CHECKED, ASKED = 256, 24
"""Others that a suspicion, and each copy of it, are measured on."""
SHARE = 0.5
"""Pull of a carrier, relative to the strongest, from which it counts as one."""
NEARLY = 0.9
"""Pull, relative to the same reference's strongest square, for which a smaller one is taken."""
HOPELESS = 0.5
"""Pull, relative to that of an accusation, of a class' strongest square below which no other is tried."""
FAINT = 0.05
"""Pull below which nothing is looked for that resembles the square: it may resemble very much."""
FEWEST_CARRIERS = 2
"""Carriers without which nothing is accused: one odd picture may be an odd object."""
FILL = "texture"
HEAD = 64
"""References from which the form of the model's answer is guessed."""
PAIRS = 12
"""Pairs of a suspicion, at most."""
HEALTHY = (
    0.428, 0.412, 0.401, 0.389, 0.386, 0.386, 0.355, 0.344, 0.337, 0.204, 0.180, 0.138,
)  # fmt: skip
"""Lower end of the largest pull in healthy networks, six of MNIST and six of Fashion-MNIST, of two
architectures; 400 references."""
HEALTHY_CLUSTERS = (
    0.460, 0.439, 0.404, 0.258, 0.236, 0.146, 0.140, 0.125, 0.115, 0.097, 0.061, 0.055,
)  # fmt: skip
"""The same of the largest pull of a cluster, in the same networks."""
HEALTHY_CHANGES = (0.38, 0.41, 0.46, 0.49, 0.54, 0.55, 0.57, 0.57, 0.65, 0.69, 0.70, 0.78)
"""Smallest change over the median of the other classes, in the same networks."""
ACCUSING, ACCUSING_CLUSTER = 0.45, 0.5
"""Lower end of the pull from which a region, and a cluster, is an accusation."""


def reveal(
    model: nn.Module,
    reference: Inputs,
    *,
    search: str = CARRIERS,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Suspicions:
    """Find what decides on some references although it is no part of an object.

    ``"regions"``, the transplant test: squares whose covering changes the model's answer are put
    onto references of other classes.  A part of an object seldom makes other objects its class; a
    trigger or a shortcut does.  The search needs carriers among the references: at least two,
    better 1 %.

    ``"clusters"``: references that lie apart from the rest of their class in front of the last
    layer, and look like references of other classes.  What they have beyond these look-alikes is
    added to others there.  It finds what fills the whole input, such as a pattern, a warp or a
    filter, and what has another place and shape in each input.  It needs at least eight carriers,
    and references among which most have a look-alike, better 1,000 or more.

    ``"changes"`` needs no carrier: `smallest_changes` looks for a class that an unusually small
    change of clean references leads to.  It takes longest: on large inputs, many times the others.

    ``"carriers"``, the default, is the first and, where that accuses nothing, the second; ``"all"``
    goes on to the third.

    What merely strengthens an answer that the object gives by itself is found by none.

    Args:
        model: the classifier; left as it was.
        reference: unlabelled inputs, ``N × C × H × W``, at least 32 of at least two predicted
            classes, some of which may carry what is looked for.
        search: ``"all"``, ``"carriers"``, ``"regions"``, ``"clusters"`` or ``"changes"``.
        seed: of the order in which references are drawn.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

    Returns:
        `Suspicions`, the strongest first; those stronger than what healthy networks were seen to
        show are accused, and have pairs for `rectify`.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: too few references, NaN, all of one class, or a model of independent labels.
        Cancelled: ``cancel`` returned True.

    Example:
        >>> found = rw.reveal(model, torch.cat([reference, pairs.corrupted]))
        >>> found.verdict
        '1 found on 102 references, stronger than in healthy networks.'
        >>> repaired = rw.rectify(model, found[0].pairs, reference=reference)
    """
    check_int("seed", seed, low=0)
    searches = IN_TURN.get(check_choice("search", search, SEARCHES), (search,))
    images = gather_references(reference, FEWEST_SEARCHED if search == CHANGES else FEWEST)
    monitor = Monitor(progress, cancel)
    found: list[Suspicion] = []
    done, whole = 0.0, sum(COST[one] for one in searches)
    for one in searches:
        end = done + COST[one] / whole
        if not any(suspicion.accused for suspicion in found):
            found += _searched(one, model, images, seed, monitor.part(done, end))
        done = end
    monitor.report(1.0, f"searched {len(images)} references")
    found.sort(key=lambda one: not one.accused)  # among the others those that were found first
    return Suspicions(tuple(found[:MOST]), len(images))


def _searched(
    search: str, model: nn.Module, images: Tensor, seed: int, monitor: Monitor
) -> list[Suspicion]:
    """What one search finds."""
    if search == REGIONS:
        return _regions(model, images, torch.Generator().manual_seed(seed), monitor)
    if search == CLUSTERS:
        return _clusters(model, images, monitor)
    changes = smallest_changes(
        model, images, seed=seed, progress=monitor.report, cancel=monitor.cancelled
    )
    return list(map(_of_change, changes[:MOST]))


def _regions(
    model: nn.Module, images: Tensor, generator: torch.Generator, monitor: Monitor
) -> list[Suspicion]:
    """Squares that decide for other references too."""
    with eval_mode(model, "reference") as plain:
        placed = images.to(device=model_device(plain), dtype=model_dtype(plain))
        module = with_head(plain, placed[:HEAD])
        scores = predict_all(module, placed, monitor=monitor)
        check_scores(scores)
        check_classes(scores.argmax(dim=1))
        test = TransplantTest(module, placed, scores, generator)
        squares = test.run(monitor.part(0.0, 0.58))
        regions = _by_class(_grouped(test, squares, monitor.part(0.58, 0.98)))
    found = []
    for number, region in enumerate(regions):
        monitor.report(0.98 + 0.02 * number / len(regions), "cleansing carriers")
        found.append(_suspicion(model, images, region, monitor.silent()))
    return sorted(found, key=lambda one: (not one.accused, -one.interval[0]))


def _clusters(model: nn.Module, images: Tensor, monitor: Monitor) -> list[Suspicion]:
    """References that look like those of other classes."""
    with eval_mode(model, "reference") as plain:
        placed = images.to(device=model_device(plain), dtype=model_dtype(plain))
        module = with_head(plain, placed[:HEAD])
        check_scores(predict_all(module, placed[:2]))
        layer = LastLayer.of(module, placed, monitor.part(0.0, 0.5))
        predicted = torch.from_numpy(layer.scores.argmax(axis=1))
        check_classes(predicted)
        clusters = find_clusters(layer, images, monitor.part(0.5, 0.9))[:MOST]
        return [_of_cluster(module, images, predicted, one, monitor.silent()) for one in clusters]


@dataclass(frozen=True)
class _Region:
    """A square, the places of its copies, and what it turned of how many others."""

    square: Square
    places: Tensor
    turned: int
    others: int

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.turned, self.others)

    @property
    def accused(self) -> bool:
        return self.interval[0] >= ACCUSING and len(self.places) >= FEWEST_CARRIERS


def _grouped(test: TransplantTest, squares: list[Square], monitor: Monitor) -> list[_Region]:
    """The strongest square, its copies on all references; then the strongest of the others."""
    regions: list[_Region] = []
    start = len(squares)
    while squares and len(regions) < MOST:
        monitor.report(
            0.5 * (len(regions) / MOST + 1.0 - len(squares) / start), "looking for copies"
        )
        first = squares[0]
        own = [one for one in squares if (one.row, one.target) == (first.row, first.target)]
        best = min(
            (one for one in own if one.pull >= NEARLY * first.pull), key=lambda one: one.size
        )
        goal = torch.tensor([best.target], device=test.images.device)
        others = test.others(goal, FEW + MANY, CHECKED)
        if int((others >= 0).sum()) < FEW + MANY:  # few references: those that chose it as well
            others = test.others(goal, 0, FEW + MANY + CHECKED)
        places = torch.tensor([[best.row, best.top, best.left, best.size]], device=goal.device)
        share = float(test.turned(places, others, monitor.silent()))
        if share >= FAINT:
            places = _copies(test, best, monitor.silent())
        rows = set(places[:, 0].tolist())
        squares = [one for one in squares if one.row not in rows or one.target != best.target]
        count = int((others >= 0).sum())
        regions.append(_Region(best, places, round(share * count), count))
        if regions[-1].interval[0] < HOPELESS * ACCUSING:
            squares = [one for one in squares if one.target != best.target]
    return regions


def _by_class(regions: list[_Region]) -> list[_Region]:
    """One for each class: its most frequent accused region, with carriers that only its others have.

    Of a class of which none is accused it is the strongest.
    """
    found: dict[int, _Region] = {}
    accused = [one for one in regions if one.accused]
    for one in sorted(accused, key=lambda one: -len(one.places)):
        first = found.setdefault(one.square.target, one)
        new = one.places[~torch.isin(one.places[:, 0], first.places[:, 0])]
        found[one.square.target] = replace(first, places=torch.cat([first.places, new]))
    for one in regions:
        found.setdefault(one.square.target, one)
    return list(found.values())


def _copies(test: TransplantTest, square: Square, monitor: Monitor) -> Tensor:
    """Places that look like the square and pull to its target as well, its own among them."""
    places, distances = test.copies(square, monitor)
    own = places[:, 0] == square.row
    alike = places[(distances < RESEMBLING) | own]
    goals = torch.full((len(alike),), square.target, device=alike.device)
    pull = test.turned(alike, test.others(goals, FEW, ASKED), monitor, goals)
    return alike[(pull >= SHARE * square.pull) | (alike[:, 0] == square.row)]


def _of_change(found: SmallestChange) -> Suspicion:
    """A change that no reference carries, as a suspicion."""
    carriers = torch.zeros(0, dtype=torch.long)
    return Suspicion(
        target=found.target,
        pull=found.turned,
        interval=wilson(round(found.turned * found.others), found.others),
        others=found.others,
        inputs=carriers,
        mask=torch.zeros(0, *found.change.mask.shape, dtype=torch.bool),
        kind="change",
        healthy=sum(size <= found.relative for size in HEALTHY_CHANGES) / len(HEALTHY_CHANGES),
        accused=found.accused,
        pairs=found.pairs if found.accused else None,
    )


def _of_cluster(
    model: nn.Module, images: Tensor, predicted: Tensor, cluster: Cluster, monitor: Monitor
) -> Suspicion:
    """A cluster, whose members may carry something anywhere, as a suspicion."""
    interval = wilson(cluster.turned, cluster.others)
    accused = interval[0] >= ACCUSING_CLUSTER
    rows = torch.from_numpy(cluster.rows)
    return Suspicion(
        target=cluster.target,
        pull=cluster.pull,
        interval=interval,
        others=cluster.others,
        inputs=rows,
        mask=torch.zeros(0, *images.shape[-2:], dtype=torch.bool),
        kind="cluster",
        healthy=sum(one >= interval[0] for one in HEALTHY_CLUSTERS) / len(HEALTHY_CLUSTERS),
        accused=accused,
        pairs=_pairs_of_cluster(model, images, predicted, cluster, monitor) if accused else None,
    )


def _pairs_of_cluster(
    model: nn.Module, images: Tensor, predicted: Tensor, cluster: Cluster, monitor: Monitor
) -> SamplePairs:
    """At most `PAIRS` look-alikes in other classes, without and with what the cluster carries.

    Where no form of corruption accounts for that, the carriers themselves stand beside them.
    """
    rows, lookalikes = torch.from_numpy(cluster.rows), torch.from_numpy(cluster.lookalikes)
    low, high, members, alike = (
        values.to(model_device(model), model_dtype(model))
        for values in (*data_range(images), images[rows], images[lookalikes])
    )
    operator = carried(model, members, alike, (low, high), monitor)
    if operator is not None:  # two members may have one look-alike
        lookalikes = lookalikes.unique()
    clean, labels = images[lookalikes], predicted[lookalikes]
    corrupted = images[rows] if operator is None else operator(clean)
    order = (labels == cluster.target).int().argsort(stable=True)
    differ = (corrupted != clean).flatten(1).any(dim=1).cpu()
    order = order[differ[order]][:PAIRS]
    labels = labels[order].to(clean.device)
    return SamplePairs(corrupted[order], clean[order], labels, operator)


def _suspicion(model: nn.Module, images: Tensor, region: _Region, monitor: Monitor) -> Suspicion:
    places = region.places.cpu()
    masks = torch.zeros(len(places), *images.shape[-2:], dtype=torch.bool)
    for mask, (_, top, left, size) in zip(masks, places.tolist(), strict=True):
        mask[top : top + size, left : left + size] = True
    low, high = region.interval
    pairs = None
    if region.accused:
        rows = places[:, 0]
        pairs = _pairs(model, images[rows.to(images.device)], masks, region.square.target, monitor)
    return Suspicion(
        target=region.square.target,
        pull=region.turned / region.others,
        interval=(low, high),
        others=region.others,
        inputs=places[:, 0],
        mask=masks,
        kind="region",
        healthy=sum(one >= low for one in HEALTHY) / len(HEALTHY),
        accused=region.accused,
        pairs=pairs,
    )


def _pairs(
    model: nn.Module, carriers: Tensor, masks: Tensor, target: int, monitor: Monitor
) -> SamplePairs:
    """At most `PAIRS` carriers, cleansed; those first whose answer is another one then."""
    some, where = carriers[:PAIRS], masks[:PAIRS]
    clean = cleanse(some, where, fill=FILL, cancel=monitor.cancelled)
    with eval_mode(model) as plain:
        module = with_head(plain, clean)
        labels = predict_all(module, clean, monitor=monitor).argmax(dim=1).cpu()
    order = (labels == target).int().argsort(stable=True)
    rows = order.to(some.device)
    return SamplePairs(some[rows], clean[rows], labels[order].to(some.device))
