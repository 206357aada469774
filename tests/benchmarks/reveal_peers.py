"""``python -m tests.benchmarks reveal-peers``: `rw.reveal` beside searches for carriers that others use.

Imports the zoo, the package and scikit-learn.  Each peer is given more than `reveal`: the class that the
attack leads to, and one of them the number of carriers.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.decomposition import FastICA
from sklearn.neighbors import kneighbors_graph
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.reveal.latent import Array, LastLayer
from tests.benchmarks.reveal import SHARES, attacked, drawn
from tests.benchmarks.tables import Table, spread
from tests.benchmarks.zoo.training import train_zoo

COMPONENTS = 10
"""Of the independent component analysis; Chen et al. take ten."""
REMOVED = 1.5
"""Times the number of carriers; Tran et al. remove that many."""
MOST_CLUSTERS, NEIGHBOURS, SIDE = 8, 10, 14
"""Of SpRAy: clusters at most, neighbours of a map, and pixels of a side of a map."""

CONNECTED = 1e-6
"""Affinity of all maps, so that the graph is in one piece."""

Flags = NDArray[np.bool_]
Peer = Callable[[nn.Module, Tensor, Array, int, int], list[Flags]]
"""From model, images and features of one class, the class, and the number of carriers: what may be the
carriers; of several answers the best counts."""


def activation_clustering(
    _model: nn.Module, _images: Tensor, features: Array, _target: int, _count: int
) -> list[Flags]:
    """The smaller of two clusters of independent components (Chen et al. 2018)."""
    size = min(COMPONENTS, len(features) - 1, features.shape[1])
    made = FastICA(size, random_state=0, max_iter=1000, tol=1e-2).fit_transform(features)
    first = KMeans(2, n_init=10, random_state=0).fit_predict(made) == 0
    return [first if 2 * first.sum() <= len(first) else ~first]


def spectral_signatures(
    _model: nn.Module, _images: Tensor, features: Array, _target: int, count: int
) -> list[Flags]:
    """Those farthest along the first principal component, 1.5 times as many as there are carriers
    (Tran et al. 2018)."""
    centred = features - features.mean(axis=0)
    along = np.abs(centred @ np.linalg.svd(centred, full_matrices=False)[2][0])
    flags: Flags = along.argsort().argsort() >= len(along) - round(REMOVED * count)
    return [flags]


def spectral_relevance(
    model: nn.Module, images: Tensor, _features: Array, target: int, _count: int
) -> list[Flags]:
    """Clusters of attribution maps by spectral clustering, as many as the eigengap says (SpRAy,
    Lapuschkin et al. 2019)."""
    maps = rw.attribute(model, images, target=target, steps=8).sum(dim=1, keepdim=True)
    small = nn.functional.adaptive_avg_pool2d(maps, SIDE).flatten(1).numpy()
    graph = kneighbors_graph(small, min(NEIGHBOURS, len(small) - 1), include_self=False)
    weights = (0.5 * (graph + graph.T)).toarray() + CONNECTED
    degree = np.maximum(weights.sum(axis=1), 1e-12) ** -0.5
    values = np.linalg.eigvalsh(np.eye(len(weights)) - degree[:, None] * weights * degree)
    clusters = 2 + int(np.diff(values[1 : MOST_CLUSTERS + 1]).argmax())
    divided = SpectralClustering(clusters, affinity="precomputed", random_state=0)
    labels = divided.fit_predict(weights)
    return [labels == number for number in range(clusters)]


PEERS: dict[str, Peer] = {
    "activation clustering": activation_clustering,
    "spectral signatures": spectral_signatures,
    "spectral relevance": spectral_relevance,
}


def measure_reveal_peers(options: Namespace, monitor: Monitor) -> Table:
    """Recall and precision of the carriers found in attacked networks of the zoo, and seconds."""
    table = Table(
        "reveal peers",
        "Carriers found among 2,000 unlabelled references; recall and precision in per cent, "
        f"{options.pairs} draws. `reveal` (clusters) is told nothing; the others are told the "
        "class, spectral signatures the number of carriers, and of spectral relevance's clusters "
        "the one counts that holds the carriers best. Seconds of processor time, the whole search "
        "of `reveal`, the others for this one class without features.",
    )
    runs = attacked(options)
    for number, (network, attack) in enumerate(runs):
        monitor.report(number / len(runs), f"{network}, {attack}")
        case = train_zoo(
            network, attack, options.data, options.network_seed, options.cache, quiet=True
        )
        target = case.target or 0
        for share in SHARES:
            figures: dict[str, list[tuple[float, float, float]]] = {}
            for seed in range(options.pairs):
                images, carriers = drawn(case, share, seed)
                start = time.process_time()
                found = [
                    one for one in rw.reveal(case.model, images, search="clusters").accused
                    if one.target == target
                ]  # fmt: skip
                seconds = time.process_time() - start
                flags = np.zeros(len(images), dtype=bool)
                flags[found[0].inputs.numpy() if found else []] = True
                truth = np.arange(len(images)) < carriers
                figures.setdefault("reveal", []).append((*_scored(flags, truth), seconds))
                with torch.no_grad():
                    layer = LastLayer.of(case.model, images, Monitor())
                own = np.flatnonzero(layer.scores.argmax(axis=1) == target)
                for name, peer in PEERS.items():
                    start = time.process_time()
                    given = case.model, images[own], layer.features[own], target, carriers
                    answers = [_scored(one, truth[own], carriers) for one in peer(*given)]
                    seconds = time.process_time() - start
                    best = max(answers, key=lambda pair: pair[0] * pair[1])
                    figures.setdefault(name, []).append((*best, seconds))
            cells = {}
            for name, rows in figures.items():
                recall, precision, taken = zip(*rows, strict=True)
                cells[name] = f"{spread(recall, 100, 0)} · {spread(precision, 100, 0)}"
                cells[f"{name}, s"] = spread(taken, digits=1)
            table.add(network=network, attack=attack, carriers=carriers, **cells)
    return table


def _scored(flags: Flags, truth: Flags, carriers: int | None = None) -> tuple[float, float]:
    """Recall, of all carriers, and precision; both 0 where nothing is flagged."""
    hits = int((flags & truth).sum())
    return hits / (carriers or int(truth.sum())), hits / max(int(flags.sum()), 1)
