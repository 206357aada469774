"""Speed of the sweep, of statistics and of localisation against what one would do without them.

Imports the engine, captum and this folder's speed modules.
"""

from __future__ import annotations

import torch
from captum.attr import InternalInfluence
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.localization import Localization, localize
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.gradients import margin, sweep
from rectify_widgets.engine.model.running import eval_mode
from tests.benchmarks.speed_bench import Bench, Cost, Measured, Row
from tests.benchmarks.speed_limits import BATCH, executed, forward_work, moment_work
from tests.benchmarks.speed_timing import Growth, Ratio, three_digits

TOLERANCE = 1e-3
"""Largest difference between our sweep and captum's, relative to a layer's largest gradient."""


def forward(model: nn.Module, images: Tensor) -> None:
    """The plain forward pass that others are measured against."""
    with torch.no_grad():
        for batch in images.split(BATCH):
            model(batch)


def measure_sweep(bench: Bench) -> Measured:
    """One sweep over all layers against captum's `InternalInfluence`, one layer after the other."""
    model, count, steps = bench.network(), bench.sizes.swept, bench.sizes.steps
    start, end = bench.images(count, seed=1), bench.images(count, seed=2)
    labels = torch.zeros(count, dtype=torch.long, device=start.device)
    rivals = labels + 1
    layers = editable_layers(model, end[:1]).editable
    theirs: dict[str, Tensor] = {}

    def difference(x: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
        return margin(model(x), labels, rivals)

    def layer_by_layer() -> None:
        for name, layer in layers.items():
            found = InternalInfluence(difference, layer.module).attribute(
                end, baselines=start, additional_forward_args=(labels, rivals), n_steps=steps,
                method="riemann_middle",
            )  # fmt: skip
            theirs[name] = layer.positions(found, count)

    with eval_mode(model) as module:

        def at_once() -> dict[str, Tensor]:
            return sweep(module, layers, start, end, labels, rivals, steps=steps, monitor=Monitor())

        with torch.enable_grad():
            mine, other = bench.clock.turns([at_once, layer_by_layer], bench.repeats)
        ours = at_once()
        done = executed(at_once)
    largest = max(
        float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()) for name in layers
    )
    if set(ours) != set(theirs) or not largest < TOLERANCE:
        raise RuntimeError(
            f"the sweep is not what captum finds: largest relative difference {largest:.1e}"
        )
    row = Row(
        f"sweep of all {len(layers)} layers",
        "captum InternalInfluence, layer by layer",
        Ratio(other, mine),
        14.0,
        faster=True,
        note=f"{count} inputs, {steps} steps; largest relative difference {largest:.0e}",
    )
    # A pass back to the inputs of the layers has as many products as the one before it.
    least = forward_work(model, start) * (2 * steps)
    return Measured([row], [Cost(row.what, bench.clock.cost(mine), least, done)])


def measure_statistics(bench: Bench) -> Measured:
    """Statistics of all layers against the plain forward pass of the same images."""
    model, images = bench.network(), bench.images(bench.sizes.collected)

    def collect() -> None:
        found.append(KeyStatistics.collect(model, images, batch_size=BATCH))

    found: list[KeyStatistics] = []
    mine, plain = bench.clock.turns(
        [collect, lambda: forward(model, images)], bench.repeats, warm=False
    )
    one = forward_work(model, images)
    done, statistics = executed(collect), found[-1]
    row = Row(
        f"statistics of all {len(statistics)} layers, {len(images)} references",
        "plain forward pass of the same images",
        Ratio(mine, plain),
        3.0,
        faster=False,
        note=f"batches of {BATCH}",
    )
    plainly = Cost(
        "plain forward pass of the same images", bench.clock.cost(plain), one, one.multiply_adds
    )
    cost = Cost(row.what, bench.clock.cost(mine), one + moment_work(model, statistics), done)
    return Measured([row], [cost, plainly])


def measure_depth(bench: Bench) -> Measured:
    """Localisation on growing depth against the forward pass of the same images."""
    measured = {depth: _depth(bench, depth) for depth in bench.sizes.depths}
    first, *deeper = bench.sizes.depths
    base = measured[first]
    rows = list(measured.values())
    rows += [
        Row(
            f"growth of localisation from {first} to {depth} layers",
            "growth of the forward pass",
            Growth(measured[depth].ratio, base.ratio),
            1.0,
            faster=False,
            note="",
        )
        for depth in deeper
    ]
    return Measured(rows)


def _depth(bench: Bench, depth: int) -> Row:
    model, pair, images = bench.network(depth), bench.pair(), bench.images(bench.sizes.localized)

    def locate() -> Localization:
        return localize(model, pair, reference=images)

    forward(model, images)  # loads and plans; a localisation is too long to be run for that alone
    mine, plain = bench.clock.turns(
        [locate, lambda: forward(model, images)], bench.repeats, warm=False
    )
    return Row(
        f"localisation, {depth} layers deep",
        f"forward pass of the same {len(images)} references",
        Ratio(mine, plain),
        None,
        faster=False,
        note=f"{three_digits(mine[0].seconds)} s and {three_digits(plain[0].seconds)} s",
    )
