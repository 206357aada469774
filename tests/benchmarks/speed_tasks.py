"""The comparisons of the speed table: what is measured, against what, and how much of it.

Imports the engine, captum and the rewriting baseline.  `SpeedOptions` has what the table quotes as
its defaults; tests take less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from captum.attr import InternalInfluence
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from rectify_widgets.baselines.rewriting import descend
from rectify_widgets.cases.case import Case
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.closed_form import closed_form, closed_form_channel, key_sums
from rectify_widgets.engine.edit.solver import DenseSolver
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.localization import localize
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.gradients import margin, sweep
from rectify_widgets.engine.model.keys import EditableLayer, pad
from rectify_widgets.engine.model.running import capturing, eval_mode
from rectify_widgets.engine.repair.solving import solve_edit
from tests.benchmarks import speed_timing as timing
from tests.benchmarks.networks import resnet
from tests.benchmarks.training import speed_trojan

SIDE = 32
"""Pixels of an edge of the images."""
TOLERANCE = 1e-3
"""Largest difference between our sweep and captum's, relative to a layer's largest gradient."""
RIDGE = 1e-2
LEARNING_RATE = 0.05
"""That of the iterative optimiser of an edit, as published."""
EDIT_TARGET = 200.0
"""How many times faster the closed form is to be."""


@dataclass(frozen=True)
class SpeedOptions:
    """What is measured, where and how often.

    Attributes:
        device: on which.
        repeats: runs of each task.
        threads: of torch.
        workers: of the loader that streams references.
        cache: folder of the Trojaned network.
        whole_epoch: time all of the fine-tuning epoch, not some of its batches.
        build: the network of a depth.
        quiet: train without a progress bar.
        swept, path_steps: inputs of the sweep, and midpoints of its path.
        collected: references of the statistics.
        edited: convolutions without groups that are edited: an early one, one in the middle, the last.
        optimiser_steps: of the iterative optimiser of an edit.
        repaired, max_rounds: references of a rectification, and rounds of one that is timed by round.
        tuned, batches: images of the fine-tuning epoch, and batches of it that are timed.
        depths, localized: layers of the networks for localisation, and its references.
        streamed: references of the smallest of the streamed collections.
    """

    device: torch.device
    repeats: int = 3
    threads: int = 2
    workers: int = 1
    cache: Path = Path()
    whole_epoch: bool = False
    build: Callable[[int], nn.Module] = resnet
    quiet: bool = False
    swept: int = 8
    path_steps: int = 8
    collected: int = 512
    edited: Sequence[str] = ("stage1.block1.conv2", "stage2.block1.conv2", "stage4.block1.conv2")
    optimiser_steps: int = 2001
    repaired: int = 256
    max_rounds: int = 3
    tuned: int = 10_000
    batches: int = 6
    depths: Sequence[int] = (18, 50, 101)
    localized: int = 64
    streamed: int = 64

    def network(self, depth: int = 18) -> nn.Module:
        """An untrained network on the device."""
        return self.build(depth).to(self.device)

    def images(self, count: int, seed: int = 0) -> Tensor:
        """Random images on the device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(count, 3, SIDE, SIDE, generator=generator).to(self.device)

    def pair(self) -> SamplePairs:
        """An image with and without a white square."""
        clean = self.images(1, seed=9)
        corrupted = clean.clone()
        corrupted[..., -6:-2, -6:-2] = 1.0
        return SamplePairs(corrupted, clean)

    def trojan(self) -> Case:
        """The network with a backdoor, trained where it is not in the cache."""
        return speed_trojan(self.cache, self.device, quiet=self.quiet)


Measurements = Iterator[timing.Comparison | timing.Cost]


def forward(model: nn.Module, images: Tensor) -> None:
    """The plain forward pass that others are measured against."""
    with torch.no_grad():
        for batch in images.split(timing.BATCH):
            model(batch)


def measure_sweep(options: SpeedOptions) -> Measurements:
    """One sweep over all layers against captum's `InternalInfluence`, one layer after the other."""
    model, count, steps = options.network(), options.swept, options.path_steps
    start, end = options.images(count, seed=1), options.images(count, seed=2)
    labels = torch.zeros(count, dtype=torch.long, device=options.device)
    layers = editable_layers(model, end[:1]).editable

    def difference(x: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
        return margin(model(x), labels, rivals)

    def at_once() -> dict[str, Tensor]:
        return sweep(model, layers, start, end, labels, labels + 1, steps=steps, monitor=Monitor())

    theirs: dict[str, Tensor] = {}

    def layer_by_layer() -> None:
        for name, layer in layers.items():
            found = InternalInfluence(difference, layer.module).attribute(
                end, baselines=start, additional_forward_args=(labels, labels + 1), n_steps=steps,
                method="riemann_middle",
            )  # fmt: skip
            theirs[name] = layer.positions(found, count)

    with eval_mode(model):
        with torch.enable_grad():
            mine, other = timing.take_turns([at_once, layer_by_layer], options.repeats)
        ours, done = at_once(), timing.executed(at_once)
    largest = max(
        float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()) for name in layers
    )
    if set(ours) != set(theirs) or not largest < TOLERANCE:
        raise RuntimeError(
            f"the sweep is not what captum finds: largest relative difference {largest:.1e}"
        )
    what = f"sweep of all {len(layers)} layers"
    yield timing.Comparison(
        what, "captum InternalInfluence, layer by layer", timing.Ratio.of(other, mine), 14.0, faster=True,
        note=f"{count} inputs, {steps} steps; largest relative difference {largest:.0e}",
    )  # fmt: skip
    # A pass back to the inputs of the layers has as many products as the one before it.
    least = timing.forward_work(model, start) * (2 * steps)
    yield timing.Cost(what, timing.undisturbed_seconds(mine, options.device), least, done)


def measure_statistics(options: SpeedOptions) -> Measurements:
    """Statistics of all layers against the plain forward pass of the same images."""
    model, images = options.network(), options.images(options.collected)
    found: list[KeyStatistics] = []

    def collect() -> None:
        found.append(KeyStatistics.collect(model, images, batch_size=timing.BATCH))

    mine, plain = timing.take_turns(
        [collect, lambda: forward(model, images)], options.repeats, warm=False
    )
    one, done, against = (
        timing.forward_work(model, images),
        timing.executed(collect),
        "plain forward pass of the same images",
    )
    what = f"statistics of all {len(found[-1])} layers, {len(images)} references"
    ratio, note = timing.Ratio.of(mine, plain), f"batches of {timing.BATCH}"
    yield timing.Comparison(what, against, ratio, 3.0, faster=False, note=note)
    least = one + timing.moment_work(model, found[-1])
    yield timing.Cost(what, timing.undisturbed_seconds(mine, options.device), least, done)
    yield timing.Cost(
        against, timing.undisturbed_seconds(plain, options.device), one, one.multiply_adds
    )


def measure_depth(options: SpeedOptions) -> Measurements:
    """Localisation on growing depth against the forward pass of the same images."""
    ratios: dict[int, timing.Ratio] = {}
    pair, images = options.pair(), options.images(options.localized)
    for depth in options.depths:
        model = options.network(depth)
        tasks = (lambda: localize(model, pair, reference=images), lambda: forward(model, images))  # noqa: B023 - run at once
        tasks[1]()  # loads and plans; a localisation is too long to be run for that alone
        mine, plain = timing.take_turns(tasks, options.repeats, warm=False)
        ratios[depth] = timing.Ratio.of(mine, plain)
        yield timing.Comparison(
            f"localisation, {depth} layers deep",
            f"forward pass of the same {len(images)} references", ratios[depth], None, faster=False,
            note=f"{timing.three_digits(mine[0].seconds)} s and {timing.three_digits(plain[0].seconds)} s",
        )  # fmt: skip
    first, *deeper = options.depths
    for depth in deeper:
        yield timing.Comparison(
            f"growth of localisation from {first} to {depth} layers", "growth of the forward pass",
            ratios[depth] / ratios[first], 1.0, faster=False,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class EditProblem:
    """What an edit of one convolution without groups is to do: from its corrupted input to clean values.

    Both sides of the comparison start from the layer's inputs on one pair, ``1 × C × H × W``, and
    the second moments of its reference keys, one for each key space.  An edit is a pair of factors
    whose product has the shape of the weight: with patch keys ``Λ`` is ``O × 1 × 1 × 1`` and the
    direction ``1 × C × kh × kw``, with channel keys ``O × 1 × kh × kw`` and ``1 × C × 1 × 1``.
    """

    layer: EditableLayer
    corrupted: Tensor
    clean: Tensor
    moments: dict[str, Tensor]

    @classmethod
    def of(
        cls, model: nn.Module, pair: SamplePairs, statistics: dict[str, KeyStatistics], name: str
    ) -> EditProblem:
        """The problem of one layer; two passes of the model."""
        layer = editable_layers(model).editable[name]
        inputs: list[Tensor] = []
        with (
            eval_mode(model) as module,
            capturing({name: layer.module}, lambda _, given, __: inputs.append(given.clone())),
        ):
            module(pair.corrupted)
            module(pair.clean)
        moments = {space: one[name].moment for space, one in statistics.items()}
        return cls(layer, inputs[0], inputs[1], moments)

    @property
    def conv(self) -> nn.Conv2d:
        """The layer's module."""
        assert isinstance(self.layer.module, nn.Conv2d)
        return self.layer.module

    @property
    def weight(self) -> Tensor:
        """The layer's weight as it is."""
        return self.conv.weight.detach()

    def values(self, inputs: Tensor, delta: Tensor | float = 0.0) -> Tensor:
        """The layer's values, before the bias, with something added to its weight."""
        conv = self.conv
        return F.conv2d(
            inputs, self.weight + delta, None, conv.stride, conv.padding, conv.dilation, conv.groups
        )  # fmt: skip

    def residual(self, edit: tuple[Tensor, Tensor]) -> float:
        """Squared distance to the clean values with the edit, as a share of that without."""
        wanted = self.values(self.clean)
        missing = wanted - self.values(self.corrupted)
        left = wanted - self.values(self.corrupted, edit[0] * edit[1])
        return float(left.square().sum() / missing.square().sum())

    @torch.no_grad()
    def solve_patch(self) -> tuple[Tensor, Tensor]:
        """The closed form with patch keys: sums, factorisation, direction, ``Λ``."""
        layer = self.layer
        corrupted, clean = (layer.keys(x, 1) for x in (self.corrupted, self.clean))
        source = key_sums(layer, corrupted, clean)["key"]
        solver = DenseSolver(layer.name, self.moments["patch"])
        right = solver.solve(source.unsqueeze(1), RIDGE)
        left = closed_form(right, corrupted, clean)
        return left.reshape(-1, 1, 1, 1), right.reshape(1, *self.weight.shape[1:])

    @torch.no_grad()
    def solve_channel(self) -> tuple[Tensor, Tensor]:
        """The same with per-pixel channel keys, the key space of the published optimiser."""
        layer = self.layer
        corrupted, clean = (layer.pixels(x, 1) for x in (self.corrupted, self.clean))
        weights = (corrupted - clean).norm(dim=2)
        source = torch.einsum("ngp,ngkp->gk", weights, corrupted)
        solver = DenseSolver(layer.name, self.moments["channel"])
        right = solver.solve(source.unsqueeze(1), RIDGE)[:, 0]
        missing = layer.keys(self.clean, 1) - layer.keys(self.corrupted, 1)
        left = closed_form_channel(layer, right, self.corrupted, missing.values())
        outputs, _, *kernel = self.weight.shape
        return left.reshape(outputs, 1, *kernel), right.reshape(1, -1, 1, 1)

    def descend(self, start: tuple[Tensor, Tensor], steps: int) -> tuple[Tensor, Tensor]:
        """``Λ`` along the direction of ``start``, from zero by Adam through the layer and back.

        The optimiser of Santurkar et al. 2021, after Bau et al. 2020, see `baselines.rewriting`.
        That baseline solves a reduced problem, which needs no layer; here the layer is what each
        step evaluates, as published.
        """
        wanted = self.values(self.clean)
        right = start[1] / start[1].norm()
        left = torch.zeros_like(start[0]).requires_grad_()
        optimiser = torch.optim.Adam([left], lr=LEARNING_RATE)
        for _ in range(steps):
            optimiser.zero_grad()
            miss = wanted - self.values(self.corrupted, left * right)
            miss.square().mean().backward()
            optimiser.step()
        return left.detach(), right

    def descend_reduced(self, start: tuple[Tensor, Tensor], steps: int) -> None:
        """The same with the products of the channel keys taken once, as the baseline does."""
        conv, right = self.conv, start[1]
        missing = self.layer.keys(self.clean, 1) - self.layer.keys(self.corrupted, 1)
        image = (self.corrupted * right / right.norm()).sum(dim=1, keepdim=True)
        rows = F.unfold(pad(conv, image), conv.kernel_size, conv.dilation, 0, conv.stride)
        descend(rows.mT, missing.values()[0].mT, steps, LEARNING_RATE, Monitor())

    def least_work(self, space: str) -> timing.Work:
        """The factorisation, and the products that the key space cannot do without.

        Of patch keys they are their sum, their responses and the sum that these weight, once
        multiplied with the weight; of channel keys the values.
        """
        moment, positions = self.moments[space], self.corrupted[0, 0].numel()
        size, weights = moment.shape[1], self.weight.numel()
        moved = 4.0 * (2 * positions * self.weight.shape[1] + weights)
        products = 3 * size * positions + weights if space == "patch" else weights * positions
        return timing.factor_work(size) + timing.Work(float(products), moved)


def measure_edit(options: SpeedOptions) -> Measurements:
    """The closed form against an iterative optimiser, which is given the edit direction, by layer."""
    model, pair, steps = options.network(), options.pair(), options.optimiser_steps
    references = options.images(timing.BATCH)
    statistics = {
        space: KeyStatistics.collect(model, references, options.edited, key_space=space)
        for space in ("patch", "channel")
    }
    for name in options.edited:
        problem = EditProblem.of(model, pair, statistics, name)
        yield from _measure_layer(options, problem, lambda: solve_edit(
            model, pair, layer=name, statistics=statistics["channel"], direction="key",  # noqa: B023 - run at once
            ridge=RIDGE, key_space="channel",
        ), timing.forward_work(model, pair.clean) * 2, steps)  # fmt: skip


def _measure_layer(
    options: SpeedOptions,
    problem: EditProblem,
    whole_call: Callable[[], object],
    passes: timing.Work,
    steps: int,
) -> Measurements:
    """Both key spaces and the whole call; ``passes`` are those of the model in the latter."""
    start = {"patch": problem.solve_patch(), "channel": problem.solve_channel()}
    whole_call()
    problem.descend(start["patch"], 3)
    tasks = [
        problem.solve_patch,
        lambda: problem.descend(start["patch"], steps),
        problem.solve_channel,
        lambda: problem.descend(start["channel"], steps),
        lambda: problem.descend_reduced(start["channel"], steps),
        whole_call,
    ]
    patch, patch_steps, channel, channel_steps, reduced, call = timing.take_turns(
        tasks, options.repeats, warm=False
    )
    residuals = {
        space: f"residual {problem.residual(edit):.5f} against "
        f"{problem.residual(problem.descend(edit, steps)):.5f}"
        for space, edit in start.items()
    }
    times = timing.three_digits(median(timing.Ratio.of(reduced, channel).seconds))
    notes = (
        residuals["patch"],
        f"{residuals['channel']}; {times}× where the optimiser takes products of keys once",
        "`solve_edit`, which runs the model; the optimiser alone; channel keys",
    )
    least = {space: problem.least_work(space) for space in start}
    for kind, own, other, target, note, needed, task in (
        ("patch keys", patch, patch_steps, EDIT_TARGET, notes[0], least["patch"], tasks[0]),
        ("channel keys", channel, channel_steps, EDIT_TARGET, notes[1], least["channel"], tasks[2]),
        ("the whole call", call, channel_steps, None, notes[2], least["channel"] + passes, tasks[5]),
    ):  # fmt: skip
        what = f"edit of {problem.layer.name}, {kind}"
        against, ratio = f"iterative optimiser, {steps:,} steps", timing.Ratio.of(other, own)
        yield timing.Comparison(what, against, ratio, target, faster=True, note=note)
        yield timing.Cost(
            what, timing.undisturbed_seconds(own, options.device), needed, timing.executed(task)
        )
