"""The rows of the lists of layers: which, in which order, and what is written in them.  Pure.

Imports the standard library only.  A `Row` stands for a layer that can be edited, for one that
cannot, with the reason, or for a group of a module tree (`layer_tree`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

NAME_WIDTH = 26
"""Longest layer name that is shown whole, in characters, unless said otherwise."""

ROOT = "(the model itself)"
"""What stands for the empty name: a model that is one layer."""


@dataclass(frozen=True)
class Row:
    """One line of a list of layers.

    Attributes:
        name: dotted name of the layer or of the group.
        label: what is written: the dotted name, or its last parts below a group.
        depth: number of groups around it.
        reason: why the layer cannot be edited; empty for all others.
        inside: the editable layers of a group, in network order.
        refused: number of layers of a group that cannot be edited.
        folded: whether a group hides what is inside; None for a layer.
    """

    name: str
    label: str
    depth: int = 0
    reason: str = ""
    inside: tuple[str, ...] = ()
    refused: int = 0
    folded: bool | None = None

    @property
    def is_group(self) -> bool:
        """Whether the row stands for several layers."""
        return self.folded is not None

    @property
    def is_layer(self) -> bool:
        """Whether the row stands for a layer that can be edited."""
        return self.folded is None and not self.reason

    def text(self, width: int = NAME_WIDTH) -> str:
        """What the row's button says, indented by its depth, with a sign where it unfolds."""
        if not self.is_group:
            gap = "  " * self.depth + ("  " if self.depth else "")
            return gap + shorten(self.label, max(width - len(gap), 8))
        count = len(self.inside) or self.refused
        gap, some = "  " * self.depth, f" ({count})"
        return (
            f"{gap}{'▸' if self.folded else '▾'} "
            f"{shorten(self.label, max(width - len(gap) - len(some) - 2, 8))}{some}"
        )


def shorten(name: str, width: int = NAME_WIDTH) -> str:
    """A layer name of at most ``width`` characters; the middle gives way."""
    name = name or ROOT
    if len(name) <= width:
        return name
    head = width // 3
    return f"{name[:head]}…{name[head + 1 - width :]}"


def interleave(
    order: Sequence[str], refused: Iterable[str], registered: Sequence[str] = ()
) -> list[str]:
    """Editable layers in their order, with each layer that cannot be edited where it belongs.

    That is behind the last editable layer before it in ``registered``, the model's modules in the
    order of registration.  Where those are not known, its dotted name tells: behind the layers that
    share the most leading parts with it, and among numbered neighbours behind the smaller numbers.
    """
    place = {name: number for number, name in enumerate(registered)}
    behind: dict[int, list[str]] = {}
    for name in refused:
        if name in place:
            before = [n for n in order if place.get(n, len(place)) < place[name]]
            spot = 1 + order.index(max(before, key=lambda n: place[n])) if before else 0
        else:
            spot = _by_name(order, name)
        behind.setdefault(spot, []).append(name)
    mixed: list[str] = []
    for spot in range(len(order) + 1):
        found = behind.get(spot, [])
        mixed += sorted(found, key=lambda n: place.get(n, len(place)))
        mixed += order[spot : spot + 1]
    return mixed


def _by_name(order: Sequence[str], name: str) -> int:
    parts = name.split(".")
    shared = [_shared(other.split("."), parts) for other in order]
    most = max(shared, default=0)
    near = [number for number, count in enumerate(shared) if count == most]
    if most == 0 and not parts[0].isdigit():
        return len(order)
    if len(parts) > most and parts[most].isdigit():
        own = int(parts[most])
        numbers = {number: order[number].split(".")[most : most + 1] for number in near}
        numbered = {n: int(part[0]) for n, part in numbers.items() if part and part[0].isdigit()}
        if numbered:
            smaller = [number for number, part in numbered.items() if part < own]
            return max(smaller) + 1 if smaller else min(numbered)
    return near[-1] + 1 if near else len(order)


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for mine, yours in zip(one, other, strict=False):
        if mine != yours:
            break
        count += 1
    return count


def list_rows(
    names: Iterable[str], refused: Mapping[str, str], scores: Mapping[str, float] | None = None
) -> list[Row]:
    """A row for each layer, in the given order.

    With ``scores``, best first, that is their order instead; then come the layers without a score
    and at last those that cannot be edited.
    """
    given = list(names)
    if scores is not None:
        ranked = [name for name in scores if name in set(given)]
        rest = [name for name in given if name not in scores and name not in refused]
        given = [*ranked, *rest, *(name for name in given if name in refused)]
    return [Row(name, name or ROOT, reason=refused.get(name, "")) for name in given]
