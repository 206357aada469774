"""Makes every call on a kind of model and says whether it was right, refused by name, or a fault.

Imports the package.  The verdicts are lines of Markdown tables.
"""

from __future__ import annotations

import re
import traceback
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import rectify_widgets as rw
from tests.engine.traces import changes, record
from tests.kinds import widget_calls  # noqa: F401 - it adds calls
from tests.kinds.calls import CALLS, Call
from tests.kinds.scene import Kind, Scene, set_scene

PACKAGE = str(Path(rw.__file__).parent)
HEAD = ("| kind | layers edited | right | refused | reasons |", "|---|---:|---:|---:|---|")
"""Of a table of kinds."""


@dataclass(frozen=True)
class Outcome:
    """What one call on one kind did."""

    refused: str = ""
    """The message of our own error; empty where there is an answer."""
    wrong: str = ""
    """What is wrong with it; empty where nothing is."""


def outcome(scene: Scene, call: Call) -> Outcome:
    """Make the call, check its answer and the model that it was given."""
    inputs = (scene.pairs.corrupted, scene.pairs.clean, scene.reference, scene.labels)
    before = record(scene.model, *inputs)
    refused = wrong = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a guessed head, torch's own about its old parts
        try:
            answer = call.make(scene)
        except (TypeError, ValueError) as error:
            own = traceback.extract_tb(error.__traceback__)[-1].filename.startswith(PACKAGE)
            named = re.match(r"[a-z_]+: ", str(error))
            refused = str(error)
            if not own or not named:
                wrong = f"raw {type(error).__name__}: {error}"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure
            wrong = f"raw {type(error).__name__}: {error}"
        left = changes(before, record(scene.model, *inputs))
        if call.writes:  # written and taken back
            left = [line for line in left if not re.match(r"parameter [\w.]+: version", line)]
        if left:
            wrong = "; ".join([wrong, *left])
        elif not wrong and not refused:
            try:
                call.check(scene, answer)
            except Exception as error:  # noqa: BLE001 - a check that cannot be made counts too
                wrong = f"not right: {type(error).__name__}: {error}"
    return Outcome(refused, wrong)


LAYERS: dict[str, str] = {}
"""Of each kind how many of its convolutions and linear layers can be edited."""


@cache
def outcomes(kind: Kind) -> dict[str, Outcome]:
    """Of all calls on one kind, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own about its old parts
        scene = set_scene(kind)
    found = {call.name: outcome(scene, call) for call in CALLS}
    LAYERS[kind.name] = scene.results.get("layers", "–")
    return found


def faults(kind: Kind) -> list[str]:
    """What is wrong with the calls on a kind."""
    return [f"{name}: {one.wrong}" for name, one in outcomes(kind).items() if one.wrong]


def row(kind: Kind) -> str:
    """One line of the table."""
    found = outcomes(kind)
    reasons: dict[str, list[str]] = {}
    for name, one in found.items():
        if one.refused:
            reasons.setdefault(re.sub(r"^[a-z]+: ", "", one.refused), []).append(name)
    told = "; ".join(
        f"{', '.join(names) if len(names) < 6 else f'{len(names)} calls'}: {message}"
        for message, names in reasons.items()
    )
    count = sum(map(len, reasons.values()))
    told = told.replace("|", r"\|").replace("<", "&lt;").replace("\n", " ")
    return f"| {kind} | {LAYERS[kind.name]} | {len(found) - count} | {count} | {told} |"
