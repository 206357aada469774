"""What a large job should cost, on paper: calculated from data sheets, not measured.

Imports the engine and `speed_limits` for their constants alone.  A vision transformer, a machine and a number of
references go in; multiply-adds, bytes and seconds come out, for statistics, a ranking of the layers
and an evaluation, shared out over GPUs as ``distributed=True`` does.

    python -m tests.benchmarks scale
    python -m tests.benchmarks.scale --gpus 64 --references 14000000 --pictures 400

Other networks and machines are one line each, see `NETWORKS` and `MACHINES`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from rectify_widgets.engine.edit.moments import BLOCK, POSITIONS_PER_INPUT, POSITIONS_PER_KEY
from rectify_widgets.engine.find.candidates import RIDGES
from rectify_widgets.engine.find.localization import TRIALS, VERIFY
from rectify_widgets.engine.find.problem import MAX_REFERENCES, PROBE
from tests.benchmarks.speed_limits import BATCH, LOOK_PASSES
from tests.benchmarks.tables import Table

FLOAT = 4
"""Bytes of a number; statistics are kept in float32 whatever the model's type."""
PIXELS = 3
"""Channels of a picture."""


@dataclass(frozen=True)
class Layer:
    """So many layers of one size: keys of ``key`` numbers at ``positions``, ``outputs`` values."""

    count: int
    key: int
    positions: int
    outputs: int


@dataclass(frozen=True)
class Transformer:
    """A vision transformer (Dosovitskiy et al. 2021) with linear layers for queries and the like."""

    name: str
    blocks: int
    width: int
    hidden: int
    patch: int
    image: int = 224
    classes: int = 1000

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image // self.patch) ** 2 + 1

    def layers(self) -> tuple[Layer, ...]:
        """The editable layers."""
        patches, width = self.tokens - 1, self.width
        return (
            Layer(1, PIXELS * self.patch**2, patches, width),
            Layer(self.blocks, width, self.tokens, 3 * width),
            Layer(self.blocks, width, self.tokens, width),
            Layer(self.blocks, width, self.tokens, self.hidden),
            Layer(self.blocks, self.hidden, self.tokens, width),
            Layer(1, width, 1, self.classes),
        )

    def forward(self) -> int:
        """Multiply-adds of one input: all layers, and attention's two products."""
        products = sum(
            part.count * part.key * part.positions * part.outputs for part in self.layers()
        )
        return products + self.blocks * 2 * self.tokens**2 * self.width

    def moments(self, references: int) -> int:
        """Multiply-adds of one input's ``k kᵀ`` over all layers."""
        return sum(
            part.count * self.taken(part, references) * upper_half(part.key)
            for part in self.layers()
        )

    def taken(self, part: Layer, references: int) -> int:
        """Positions of one input that a layer's sum takes, see `MomentSum`."""
        per_key = -(-POSITIONS_PER_KEY * part.key // references)
        return min(part.positions, max(POSITIONS_PER_INPUT, per_key))

    def moment_bytes(self) -> int:
        """Of the second moments of all layers."""
        return sum(part.count * part.key**2 for part in self.layers()) * FLOAT

    def factors(self) -> int:
        """Multiply-adds of one Cholesky factorisation of each layer's moment."""
        return sum(part.count * part.key**3 // 3 for part in self.layers())


def upper_half(size: int) -> int:
    """Multiply-adds of the blocks of a symmetric ``size × size`` product that are formed."""
    if size <= BLOCK:
        return size * size
    starts = range(0, size, BLOCK)
    return sum(min(BLOCK, size - first) * (size - first) for first in starts)


@dataclass(frozen=True)
class Machine:
    """GPUs in one box; per second and for each GPU where nothing else is said.

    Attributes:
        tera: 10¹² floating-point operations by precision, dense.
        memory: bytes between the GPU and its memory.
        host: bytes from the host to the GPU, one way.
        link: bytes to the other GPUs, one way.
        cores: of the host's processors, for each GPU.
        pictures: read, decoded and scaled by one of them.
        products: share of ``tera`` that large products reach.
        solving: share that factorisations reach.
        moving: share of ``memory``, ``host`` and ``link`` that is reached.
    """

    name: str
    tera: dict[str, float]
    memory: float
    host: float
    link: float
    cores: int = 16
    pictures: float = 250.0
    products: float = 0.5
    solving: float = 0.2
    moving: float = 0.7


NETWORKS = {
    "vit-b": Transformer("ViT-B/16", blocks=12, width=768, hidden=3072, patch=16),
    "vit-l": Transformer("ViT-L/16", blocks=24, width=1024, hidden=4096, patch=16),
    "vit-h": Transformer("ViT-H/14", blocks=32, width=1280, hidden=5120, patch=14),
}
"""Dosovitskiy et al. 2021, table 1."""
MACHINES = {
    "h100": Machine(
        "H100 SXM",
        tera={"fp32": 67.0, "tf32": 494.7, "bf16": 989.4},
        memory=3.35e12,
        host=64e9,
        link=450e9,
    ),
}
"""NVIDIA H100 Tensor Core GPU data sheet: its figures with sparsity halved, and links one way."""
MODES = {"fp32": ("fp32", "fp32"), "tf32": ("tf32", "tf32"), "bf16": ("bf16", "tf32")}
"""Precision of the model's passes, and of the moments and factors, which stay in float32."""


@dataclass(frozen=True)
class Term:
    """One thing to do: what it takes on all GPUs together, and how long in each of `MODES`."""

    call: str
    what: str
    work: str
    seconds: dict[str, float]


def terms(
    network: Transformer, machine: Machine, gpus: int, references: int, tests: int
) -> list[Term]:
    """All that the three calls do on ``gpus``, one after another."""
    flops = {mode: machine.tera[own[0]] * 1e12 for mode, own in MODES.items()}
    precise = {mode: machine.tera[own[1]] * 1e12 for mode, own in MODES.items()}

    def passes(call: str, what: str, inputs: float, by: int = gpus) -> Term:
        work = 2.0 * inputs * network.forward()
        return Term(
            call,
            what,
            f"{inputs:,.0f} passes, {work / 1e15:.2f} PFLOP",
            {mode: work / by / (rate * machine.products) for mode, rate in flops.items()},
        )

    def moved(call: str, what: str, size: float, rate: float) -> Term:
        seconds = size / gpus / (rate * machine.moving)
        return Term(call, what, f"{size / 1e9:,.1f} GB", dict.fromkeys(MODES, seconds))

    def streamed(call: str, inputs: int) -> list[Term]:
        read = inputs / (gpus * machine.cores * machine.pictures)
        picture = PIXELS * network.image**2 * FLOAT
        return [
            Term(
                call,
                f"reading and decoding, {gpus * machine.cores} cores",
                f"{inputs:,} pictures",
                dict.fromkeys(MODES, read),
            ),
            moved(call, "to the GPUs", inputs * picture, machine.host),
            passes(call, "forward", inputs),
        ]

    products = 2.0 * references * network.moments(references)
    moments = network.moment_bytes()
    batches = -(-references // BATCH)
    factors = 2.0 * len(RIDGES) * network.factors()
    return [
        *streamed("collect", references),
        Term(
            "collect",
            "second moments",
            f"{products / 1e15:.2f} PFLOP",
            {mode: products / gpus / (rate * machine.products) for mode, rate in precise.items()},
        ),
        moved("collect", "second moments in memory", 2 * moments * batches, machine.memory),
        moved("collect", "all-reduce", 2 * (gpus - 1) * moments, machine.link),
        passes("localize", "references and carriers, on each GPU", 2 * MAX_REFERENCES, 1),
        passes("localize", "sweep", PROBE * LOOK_PASSES),
        Term(
            "localize",
            "factorising, on each GPU",
            f"{factors / 1e15:.4f} PFLOP",
            {mode: factors / (rate * machine.solving) for mode, rate in precise.items()},
        ),
        passes("localize", "trials", VERIFY * (3 + 2 * TRIALS)),
        *streamed("evaluate", tests),
    ]


def calculate(
    network: Transformer = NETWORKS["vit-l"],
    machine: Machine = MACHINES["h100"],
    gpus: int = 8,
    references: int = 1_281_167,
    tests: int = 100_000,
) -> Table:
    """The table: seconds on so many GPUs in each precision, and what takes longest."""
    found = terms(network, machine, gpus, references, tests)
    table = Table(
        "scale",
        f"Calculated, not measured: {network.name} ({network.forward() / 1e9:.1f} G multiply-adds, "
        f"{network.moment_bytes() / 1e9:.2f} GB of second moments), {references:,} references, "
        f"{tests:,} test inputs, {gpus} × {machine.name}. Products at {machine.products:.0%} of the "
        f"data sheet's rate, factorisations at {machine.solving:.0%}, transfers at "
        f"{machine.moving:.0%}, {machine.pictures:.0f} pictures a second read by each core. Columns "
        "by precision of the passes (bf16: with moments in TF32). Reading, transfers and passes of "
        "`collect` and `evaluate` overlap where a loader has workers: the longest term is the time.",
    )
    for term in found:
        seconds = {f"{mode}, s": f"{term.seconds[mode]:.3g}" for mode in MODES}
        table.add(call=term.call, what=term.what, work=term.work, **seconds)
    for call in dict.fromkeys(term.call for term in found):
        own = [term for term in found if term.call == call]
        table.add(
            call=call,
            what="sum; longest",
            work="",
            **{f"{mode}, s": _summed(own, mode) for mode in MODES},
        )
    return table


def _summed(own: list[Term], mode: str) -> str:
    seconds = {term.what: term.seconds[mode] for term in own}
    longest = max(seconds, key=lambda what: seconds[what])
    return f"{sum(seconds.values()):.3g}; {longest}"


def main(arguments: list[str] | None = None) -> None:
    """Print the table for numbers of one's own."""
    parser = argparse.ArgumentParser(description="What a large job should cost, on paper.")
    add = parser.add_argument
    add("--network", choices=NETWORKS, default="vit-l", help="default: %(default)s")
    add("--machine", choices=MACHINES, default="h100", help="default: %(default)s")
    add("--gpus", type=int, default=8, help="default: %(default)s")
    add("--references", type=int, default=1_281_167, help="default: ImageNet's training set")
    add("--tests", type=int, default=100_000, help="clean and corrupted (default: %(default)s)")
    for name in ("cores", "pictures", "products", "solving", "moving"):
        value = getattr(MACHINES["h100"], name)
        add(f"--{name}", type=type(value), help=f"see `Machine` (H100: {value})")
    options = vars(parser.parse_args(arguments))
    network, machine = NETWORKS[options.pop("network")], MACHINES[options.pop("machine")]
    own = {name: options.pop(name) for name in ("gpus", "references", "tests")}
    machine = replace(machine, **{k: v for k, v in options.items() if v is not None})
    print(calculate(network, machine, **own).markdown())


if __name__ == "__main__":
    main()
