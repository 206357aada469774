"""Clusters of references that are in a class although they look like others.

Imports the engine, `latent`, numpy and scipy.

What fills the whole input, or differs from input to input, leaves no region to transplant.  In front
of the last layer its carriers still lie together, apart from the rest of their class (activation
clustering, Chen et al. 2018), but so do natural kinds of a class.  What tells them apart is checked
causally here: each member is compared with its *look-alike*, the reference outside the cluster whose
pixels correlate most with its own.  Carriers look like inputs of other classes; what they have beyond
their look-alikes, added to other references, turns these.  The rest of the class is compared with its
look-alikes in the same way, and its difference taken off (difference in differences), so that what
makes the class itself has no say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.reveal.latent import Array, LastLayer

LEAST = 8
"""Members of a cluster, and of the rest of its class, at least."""
PARTS = 6
"""Clusters that a class is divided into, at most."""
AXES = 10
"""Principal components in which a class is divided."""
NEARLY = 0.8
"""Pull, relative to the strongest cluster of a class, for which a larger one is taken."""
SIDE = 32
"""Pixels of a side, at most, of the pictures whose look-alikes are looked for."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cluster:
    """Members of a class, and what they have beyond their look-alikes.

    Attributes:
        target: their class.
        rows: their row numbers, ascending.
        lookalikes: row number of each one's look-alike, which is outside the cluster.
        turned: how many others their difference turns to ``target``, in front of the last layer.
        others: how many references of other classes it was added to; none is a look-alike.
    """

    target: int
    rows: Rows
    lookalikes: Rows
    turned: int
    others: int

    @property
    def pull(self) -> float:
        """Share of the others that are turned."""
        return self.turned / self.others


def find_clusters(layer: LastLayer, images: Tensor, monitor: Monitor) -> list[Cluster]:
    """The largest cluster of each class that pulls nearly as strongly as any, the strongest first.

    The carriers often make several clusters, of which a part has a slightly stronger pull than all.
    Classes with fewer than 2 · `LEAST` references have none.

    Args:
        layer: features and scores of the references.
        images: the references, ``N × C × H × W``.
        monitor: progress and cancellation.
    """
    pixels = _standardised(images)
    predicted = layer.scores.argmax(axis=1)
    classes = np.unique(predicted)
    found = []
    for number, target in enumerate(classes):
        monitor.report(number / len(classes), f"clusters of class {target}")
        own = np.flatnonzero(predicted == target)
        alike = pixels[own] @ pixels.T
        alike[np.arange(len(own)), own] = -np.inf
        clusters = [
            _compared(layer, predicted, int(target), own, member, alike)
            for member in _divisions(layer.features[own])
        ]
        bar = NEARLY * max((one.pull for one in clusters if one.others), default=0.0)
        strong = [one for one in clusters if one.others and one.pull >= bar]
        found += sorted(strong, key=lambda one: -len(one.rows))[:1]
    return sorted(found, key=lambda one: -one.pull)


def _standardised(images: Tensor) -> NDArray[np.float32]:
    """Pixels of each image with mean 0 and length 1, so that products are correlations."""
    small = images.detach().float()
    size = min(images.shape[-2], SIDE), min(images.shape[-1], SIDE)
    flat = F.adaptive_avg_pool2d(small, size).flatten(1)
    flat = F.normalize(flat - flat.mean(dim=1, keepdim=True))
    made: NDArray[np.float32] = flat.cpu().numpy()
    return made


def _divisions(features: Array) -> Iterator[NDArray[np.bool_]]:
    """Memberships of the clusters that Ward's method divides a class into, each once."""
    if len(features) < 2 * LEAST:
        return
    left, sizes, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    tree = linkage(left[:, :AXES] * sizes[:AXES], "ward")
    seen = set()
    for parts in range(2, PARTS + 1):
        numbers = fcluster(tree, parts, "maxclust")
        for number in np.unique(numbers):
            member = numbers == number
            if member.tobytes() not in seen and LEAST <= member.sum() <= len(member) - LEAST:
                seen.add(member.tobytes())
                yield member


def _compared(
    layer: LastLayer,
    predicted: Rows,
    target: int,
    own: Rows,
    member: NDArray[np.bool_],
    alike: NDArray[np.float32],
) -> Cluster:
    """What the members of a class have beyond their look-alikes, and the rest have not."""
    outside = alike.copy()
    outside[:, own[member]] = -np.inf
    lookalikes = outside.argmax(axis=1)
    beyond = layer.features[own] - layer.features[lookalikes]
    shift = beyond[member].mean(axis=0) - beyond[~member].mean(axis=0)
    free = predicted != target
    free[lookalikes[member]] = False
    scores = (layer.features[free] + shift) @ layer.weight.T + layer.bias
    turned = int((scores.argmax(axis=1) == target).sum())
    return Cluster(target, own[member], lookalikes[member], turned, int(free.sum()))
