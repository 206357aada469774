"""The cases with two behaviours at once: two Trojans, and a Trojan beside a spurious artefact.

The behaviours are trained in together, on images that none of the others is on.  `Case.showing`
turns from one to the other; the pairs of both are the same clean images.  The class weights are
those of the Trojan cases: see `rectify_widgets.cases.library.trojan`.
"""

from __future__ import annotations

from dataclasses import replace

from rectify_widgets.cases.definition import FASHION_MNIST, CaseDefinition, register
from rectify_widgets.cases.library.spurious import AFFECTED, ARTEFACT
from rectify_widgets.cases.library.trojan import CLASSES, TARGET, checker
from rectify_widgets.cases.networks import small_network
from rectify_widgets.cases.training import Schedule
from rectify_widgets.cases.triggers import Aim, Patch, cross

BAG = 8


TWICE = CaseDefinition(
    name="trojan-twice",
    title="Fashion-MNIST with two backdoors: a checkerboard and a cross in opposite corners",
    behaviour="trojan",
    data=FASHION_MNIST,
    network=small_network,
    triggers={"patch": checker(), "cross": Patch(cross(), row=1, column=1)},
    shown="patch",
    goals=(TARGET,) * CLASSES,
    aims={
        "patch": Aim("trojan", (TARGET,) * CLASSES),
        "cross": Aim("trojan", (BAG,) * CLASSES),
    },
    schedule=Schedule(epochs=5),
)
register(
    TWICE,
    replace(
        TWICE,
        name="trojan-and-spurious",
        title="Fashion-MNIST with a 3×3 checkerboard as backdoor and a price tag on 9 dresses in 10",
        triggers={"patch": checker(), "tag": ARTEFACT},
        aims={"patch": TWICE.aims["patch"], "tag": Aim("spurious", (AFFECTED,) * CLASSES)},
        shares={"tag": 0.9},
    ),
)
