"""What a large job should cost, on paper: calculated from data sheets, not measured.

Imports the engine for its constants alone.  A vision transformer, a machine and a number of
references go in; multiply-adds, bytes and seconds come out, for statistics, a ranking of the layers
and an evaluation, shared out over GPUs as ``distributed=True`` does.

    python -m tests.benchmarks scale
    python -c "from tests.benchmarks.scale import *; print(calculate(gpus=64).markdown())"

Other networks and machines are one line each, see `VIT_L` and `H100`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rectify_widgets.engine.edit.moments import BLOCK, POSITIONS_PER_INPUT, POSITIONS_PER_KEY
from rectify_widgets.engine.find.candidates import RIDGES
from rectify_widgets.engine.find.localization import TRIALS
from rectify_widgets.engine.find.problem import MAX_REFERENCES, QUICK_PROBE
from rectify_widgets.engine.find.ranking import VERIFY
from tests.benchmarks.speed_timing import BATCH, TRACE_PASSES
from tests.benchmarks.tables import Table

FLOAT = 4
"""Bytes of a number; statistics are kept in float32 whatever the model's type."""
PIXELS = 3
"""Channels of a picture."""


class Layers(NamedTuple):
    """So many layers of one size: keys of ``key`` numbers at ``positions``, ``outputs`` values."""

    number: int
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

    def layers(self) -> tuple[Layers, ...]:
        """The editable layers; tokens are the patches and the class token."""
        patches, width = (self.image // self.patch) ** 2, self.width
        inside = ((width, 3 * width), (width, width), (width, self.hidden), (self.hidden, width))
        return (
            Layers(1, PIXELS * self.patch**2, patches, width),
            *(Layers(self.blocks, key, patches + 1, outputs) for key, outputs in inside),
            Layers(1, width, 1, self.classes),
        )

    def forward(self) -> int:
        """Multiply-adds of one input: all layers, and attention's two products."""
        products = sum(
            number * key * places * values for number, key, places, values in self.layers()
        )
        tokens = self.layers()[1].positions
        return products + self.blocks * 2 * tokens**2 * self.width

    def moments(self, references: int) -> int:
        """Multiply-adds of one input's ``k kᵀ`` over all layers."""
        return sum(
            part.number * self.taken(part, references) * upper_half(part.key)
            for part in self.layers()
        )

    def taken(self, part: Layers, references: int) -> int:
        """Positions of one input that a layer's sum takes, see `MomentSum`."""
        per_key = -(-POSITIONS_PER_KEY * part.key // references)
        return min(part.positions, max(POSITIONS_PER_INPUT, per_key))

    def moment_bytes(self) -> int:
        """Of the second moments of all layers."""
        return sum(part.number * part.key**2 for part in self.layers()) * FLOAT

    def factors(self) -> int:
        """Multiply-adds of one Cholesky factorisation of each layer's moment."""
        return sum(part.number * part.key**3 // 3 for part in self.layers())


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


VIT_B = Transformer("ViT-B/16", blocks=12, width=768, hidden=3072, patch=16)
VIT_L = Transformer("ViT-L/16", blocks=24, width=1024, hidden=4096, patch=16)
VIT_H = Transformer("ViT-H/14", blocks=32, width=1280, hidden=5120, patch=14)
"""Dosovitskiy et al. 2021, table 1."""
H100 = Machine(
    "H100 SXM", tera={"fp32": 67.0, "tf32": 494.7, "bf16": 989.4}, memory=3.35e12, host=64e9,
    link=450e9,
)  # fmt: skip
"""NVIDIA H100 Tensor Core GPU data sheet: its figures with sparsity halved, and links one way."""
MODES = {"fp32": ("fp32", "fp32"), "tf32": ("tf32", "tf32"), "bf16": ("bf16", "tf32")}
"""Precision of the model's passes, and of the moments and factors, which stay in float32."""


class Term(NamedTuple):
    """One thing to do: what it takes on all GPUs together, and how long in each of `MODES`."""

    call: str
    what: str
    work: str
    seconds: dict[str, float]


def terms(
    network: Transformer, machine: Machine, gpus: int, references: int, tests: int
) -> list[Term]:
    """All that the three calls do on ``gpus``, one after another."""

    def computed(place: int, operations: float, share: float, by: int = gpus) -> dict[str, float]:
        """``place``: that of the precision in `MODES`; ``by``: GPUs that the work is shared by."""
        rates = {mode: machine.tera[precision[place]] for mode, precision in MODES.items()}
        return {mode: operations / by / (1e12 * rate * share) for mode, rate in rates.items()}

    def passes(call: str, what: str, inputs: float, by: int = gpus) -> Term:
        work = 2.0 * inputs * network.forward()
        text = f"{inputs:,.0f} passes, {work / 1e15:.2f} PFLOP"
        return Term(call, what, text, computed(0, work, machine.products, by))

    def moved(call: str, what: str, size: float, rate: float) -> Term:
        seconds = size / gpus / (rate * machine.moving)
        return Term(call, what, f"{size / 1e9:,.1f} GB", dict.fromkeys(MODES, seconds))

    def streamed(call: str, inputs: int) -> list[Term]:
        cores = gpus * machine.cores
        seconds = dict.fromkeys(MODES, inputs / (cores * machine.pictures))
        reading = f"reading and decoding, {cores} cores"
        return [
            Term(call, reading, f"{inputs:,} pictures", seconds),
            moved(call, "to the GPUs", inputs * PIXELS * network.image**2 * FLOAT, machine.host),
            passes(call, "forward", inputs),
        ]

    products = 2.0 * references * network.moments(references)
    moments, batches = network.moment_bytes(), -(-references // BATCH)
    factors = 2.0 * len(RIDGES) * network.factors()
    return [
        *streamed("collect", references),
        Term(
            "collect", "second moments", f"{products / 1e15:.2f} PFLOP",
            computed(1, products, machine.products),
        ),
        moved("collect", "second moments in memory", 2 * moments * batches, machine.memory),
        moved("collect", "all-reduce", 2 * (gpus - 1) * moments, machine.link),
        passes("localize", "references and carriers, on each GPU", 2 * MAX_REFERENCES, 1),
        passes("localize", "sweep", QUICK_PROBE * TRACE_PASSES),
        Term(
            "localize", "factorising, on each GPU", f"{factors / 1e15:.4f} PFLOP",
            computed(1, factors, machine.solving, 1),
        ),
        passes("localize", "trials", VERIFY * (3 + 2 * TRIALS)),
        *streamed("evaluate", tests),
    ]  # fmt: skip


def calculate(
    network: Transformer = VIT_L,
    machine: Machine = H100,
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
        sums = {}
        for mode in MODES:
            own = {term.what: term.seconds[mode] for term in found if term.call == call}
            sums[f"{mode}, s"] = f"{sum(own.values()):.3g}; {max(own, key=lambda what: own[what])}"
        table.add(call=call, what="sum; longest", work="", **sums)
    return table
