"""What layers there are, in a list and in a tree of modules, and what is known about each.  Pure.

Imports the engine's catalogue and localisation, and `markup`.  Nothing here is escaped; `html` does
that.  In the tree ``stage3.block1.conv2`` is the layer ``conv2`` in the group ``block1`` in the group
``stage3``; a group that holds nothing but one group or one layer is written in one line with it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import eq
from typing import TypeAlias

from torch import nn

from rectify_widgets.engine.base.checks import check_choice, check_type, nearest
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.localization import Localization
from rectify_widgets.engine.find.ranking import RANKING_METHODS
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.running import eval_mode, unwrap
from rectify_widgets.widgets import markup

Localizations: TypeAlias = "Localization | Sequence[Localization] | Mapping[str, Localization]"
"""One localisation, or one for each of several methods."""

CLIP = 0.5
"""Length of the longest bar below zero, as a share of the longest above it."""

ROOT = "(the model itself)"
"""What stands for the empty name: a model that is one layer."""

SELF = "(itself)"
"""Label of a layer that holds other layers, inside its own group."""


# -- entries of the list and of the tree ----------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A layer that can be edited, one that cannot, or a group of the tree.

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
        """Whether it stands for several layers."""
        return self.folded is not None

    @property
    def is_layer(self) -> bool:
        """Whether it is a layer that can be edited."""
        return not self.is_group and not self.reason

    @property
    def layers(self) -> tuple[str, ...]:
        """The layer itself, or those inside a group."""
        return self.inside if self.is_group else (self.name,)


@dataclass(frozen=True)
class Node:
    """A group of the tree, or a layer where there is nothing inside."""

    name: str
    label: str
    parts: tuple[Node, ...] = ()

    @property
    def layers(self) -> list[str]:
        """Names of the layers inside, a layer's own name for a layer."""
        return [name for part in self.parts for name in part.layers] if self.parts else [self.name]


def build_tree(names: Sequence[str], prefix: str = "") -> tuple[Node, ...]:
    """The outermost nodes; groups stand where the first of their layers stands."""
    inside: dict[str, list[str]] = {}
    for name in names:
        own = prefix and f"{name}." == prefix
        inside.setdefault(SELF if own else name[len(prefix) :].partition(".")[0], []).append(name)
    nodes = []
    for head, members in inside.items():
        if head == SELF or members == [prefix + head]:
            nodes.append(Node(members[0], head or ROOT))
            continue
        parts = build_tree(members, f"{prefix}{head}.")
        if len(parts) == 1:
            nodes.append(Node(parts[0].name, f"{head}.{parts[0].label}", parts[0].parts))
        else:
            nodes.append(Node(prefix + head, head, parts))
    return tuple(nodes)


def group_names(nodes: Iterable[Node]) -> Iterator[str]:
    """Names of all groups, outer ones first."""
    for node in nodes:
        if node.parts:
            yield node.name
            yield from group_names(node.parts)


def first_folds(nodes: Sequence[Node], count: int) -> list[str]:
    """Groups to fold so that at most ``count`` entries are seen, outer levels unfolded first.

    The outermost level is always seen, however long it is.
    """
    visible, level = len(nodes), [node for node in nodes if node.parts]
    while level:
        visible += sum(len(node.parts) for node in level)
        if visible > count:
            return list(group_names(level))
        level = [part for node in level for part in node.parts if part.parts]
    return []


def tree_entries(
    nodes: Sequence[Node],
    refused: Mapping[str, str],
    folded: Collection[str] = (),
    scores: Mapping[str, float] | None = None,
    depth: int = 0,
) -> list[Entry]:
    """The entries that are seen while the groups ``folded`` are folded.

    With ``scores`` the parts of each group are ranked by the best score inside.
    """
    if scores is not None:
        nodes = sorted(nodes, key=lambda node: -max(scores.get(n, -math.inf) for n in node.layers))
    entries: list[Entry] = []
    for node in nodes:
        if not node.parts:
            entries.append(Entry(node.name, node.label, depth, refused.get(node.name, "")))
            continue
        inside = tuple(name for name in node.layers if name not in refused)
        outside, shut = len(node.layers) - len(inside), node.name in folded
        entries.append(Entry(node.name, node.label, depth, "", inside, outside, shut))
        if not shut:
            entries += tree_entries(node.parts, refused, folded, scores, depth + 1)
    return entries


def list_entries(
    names: Sequence[str], refused: Mapping[str, str], scores: Mapping[str, float] | None = None
) -> list[Entry]:
    """An entry for each layer, in the given order.

    With ``scores``, best first, that is their order instead; then come the layers without a score
    and at last those that cannot be edited.
    """
    if scores is not None:
        place = {name: number for number, name in enumerate(scores)}
        names = sorted(names, key=lambda name: (name in refused, place.get(name, len(place))))
    return [Entry(name, name or ROOT, reason=refused.get(name, "")) for name in names]


def interleave(
    order: Sequence[str], refused: Iterable[str], registered: Sequence[str] = ()
) -> list[str]:
    """Editable layers in their order, with each layer that cannot be edited where it belongs.

    That is behind the last editable layer before it in ``registered``, the model's modules in the
    order of registration.  Where those are not known, its dotted name decides: behind the layers that
    share the most leading parts with it, and among numbered neighbours behind the smaller numbers.
    """
    place = {name: number for number, name in enumerate(registered)}
    behind: list[list[str]] = [[] for _ in range(len(order) + 1)]
    for name in sorted(refused, key=lambda name: place.get(name, len(place))):
        if name in place:
            before = [n for n in order if place.get(n, len(place)) < place[name]]
            spot = 1 + order.index(max(before, key=lambda n: place[n])) if before else 0
        else:
            spot = _place_by_name(order, name)
        behind[spot].append(name)
    head, *tails = behind
    return head + [n for name, tail in zip(order, tails, strict=True) for n in (name, *tail)]


def _place_by_name(order: Sequence[str], name: str) -> int:
    """Number of the editable layers that stand before a layer."""
    parts = [one.split(".") for one in (*order, name)]
    common = [[*map(eq, other, parts[-1]), False].index(False) for other in parts[:-1]]
    most = max(common, default=0)
    near = [number for number, count in enumerate(common) if count == most]
    *others, own = ("".join(one[most : most + 1]) for one in parts)
    numbers = {place: int(others[place]) for place in near if others[place].isdigit()}
    if own.isdigit() and numbers:
        smaller = [place for place, number in numbers.items() if number < int(own)]
        return smaller[-1] + 1 if smaller else min(numbers)
    return near[-1] + 1 if near else 0


class Layers:
    """The layers of one model, those that cannot be edited among them, in a list and in a tree.

    Args:
        order: editable layers in network order.
        refused: layers that cannot be edited, with the reason.
        kinds: what each layer is.
        registered: the model's modules in the order of registration, where they are known.
    """

    def __init__(
        self,
        order: Sequence[str],
        refused: Mapping[str, str],
        kinds: Mapping[str, str],
        registered: Sequence[str] = (),
    ) -> None:
        self.order = tuple(order)
        self.refused = {name: why for name, why in refused.items() if name not in self.order}
        self.kinds = kinds
        self._names = interleave(self.order, self.refused, registered)
        self.tree = build_tree(self._names)
        self.groups = tuple(group_names(self.tree))

    @classmethod
    def of_model(cls, model: nn.Module, pairs: SamplePairs) -> Layers:
        """The layers of a model, which is run once on a clean sample."""
        with eval_mode(model, "pairs") as module:
            catalog = editable_layers(module, pairs.clean[:1])
        kinds = {layer.name: layer.kind for layer in catalog}
        registered = [name for name, _ in unwrap(model).named_modules()]
        return cls(tuple(catalog.editable), catalog.refused, kinds, registered)

    @classmethod
    def of_localizations(cls, several: Sequence[Localization]) -> Layers:
        """The layers that were scored, as far as the longest of several localisations knows."""
        longest = max(several, key=lambda one: len(one.order))
        return cls(longest.order, longest.refused, longest.kinds)

    def entries(
        self, view: str, scores: Mapping[str, float] | None, folded: Collection[str]
    ) -> list[Entry]:
        """All entries of a view; with scores, best first, in their order."""
        if view == "tree":
            return tree_entries(self.tree, self.refused, folded, scores)
        return list_entries(self._names, self.refused, scores)

    def around(self, layer: str) -> list[str]:
        """The groups that a layer is in, outermost first."""
        return [group for group in self.groups if f"{layer}.".startswith(f"{group}.")]

    def check(self, argument: str, name: object) -> str:
        """The name of an editable layer; a `ValueError` naming ``argument`` says why it is none."""
        if name in self.order:
            return str(name)
        if why := self.refused.get(str(name)):
            raise ValueError(f"{argument}: {name!r} cannot be edited: {why}")
        raise ValueError(
            f"{argument}: {name!r} is unknown{nearest(str(name), self.order)}; want one of "
            f"{len(self.order)} editable layers, such as {self.order[-1]!r}"
            if self.order
            else f"{argument}: got {name!r}, but no layer here can be edited"
        )

    def check_scores(self, argument: str, several: Sequence[Localization]) -> None:
        """Raise a `ValueError` unless everything that was scored is one of these layers."""
        for name in (name for one in several for name in one.scores):
            if name not in self.order:
                raise ValueError(
                    f"{argument}: scores {name!r}, which is no layer here"
                    f"{nearest(name, self.order)}; show it in a viewer of its own"
                )


def check_localizations(argument: str, value: object) -> list[Localization]:
    """One localisation or several as a list, each of another method."""
    named, several = isinstance(value, Mapping), []
    given = value if isinstance(value, list | tuple | Mapping) else [value]
    for name, one in given.items() if isinstance(given, Mapping) else enumerate(given):
        want = "a Localization, or a list or dict of them"
        found: Localization = check_type(argument, one, Localization, want)
        if named and name != found.method:
            raise ValueError(
                f"{argument}: got a Localization by {found.method!r} under {name!r}, "
                "want each under the name of its method"
            )
        if not found.scores:
            raise ValueError(f"{argument}: got a Localization without scores, want some")
        check_choice("method", found.method, RANKING_METHODS)
        several.append(found)
    methods = [one.method for one in several]
    if not methods or len(set(methods)) < len(methods):
        raise ValueError(
            f"{argument}: got {', '.join(methods) or 'none'}, want one Localization a method"
        )
    return several


# -- scores and measurements ----------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """The scores of one method.

    Attributes:
        method: its name.
        values: layer name to score, best first.
        note: of which model the scores are.
        front: whether this is the method in front.
    """

    method: str
    values: Mapping[str, float]
    note: str = ""
    front: bool = True

    @property
    def is_share(self) -> bool:
        """Whether the scores are shares of the gap, 0 to 1."""
        return RANKING_METHODS[self.method].is_share

    def limits(self, measured: Iterable[float] = ()) -> tuple[float, float]:
        """Values at both ends of a bar.

        Shares reach from 0 to 1, or as far as they and what was measured go; so a short bar says
        that a layer closes little of the gap even where no other closes more.  Below zero they
        reach half as far at most, so that one edit that does harm leaves room for the others.
        """
        values = [0.0, *self.values.values()]
        if self.is_share:
            values += [1.0, *measured]
        high = max(values) or 1.0
        return max(min(values), -CLIP * high), high

    def of(self, entry: Entry) -> float | None:
        """The score of a layer, or the best one inside a group."""
        return max(
            (self.values[name] for name in entry.layers if name in self.values), default=None
        )

    def text(self, score: float | None) -> str:
        """A score for people: a share in per cent, any other number to three digits."""
        if score is None:
            return "–"
        if self.is_share:
            return markup.percent(score)
        if 100.0 <= abs(score) < 1e6:
            return f"{float(f'{score:.3g}'):,.0f}".replace(",", " ").replace("-", "−")
        return f"{score:.3g}".replace("-", "−")


@dataclass(frozen=True)
class Knowledge:
    """What is known about the layers.

    Attributes:
        scores: of each method, those of the one in front first.
        measured: layer name to the share of the gap that its edit closed.
        edited: names of edited layers.
        kinds: what each layer is.
        choices, completeness: of the method in front, see `Localization`.
    """

    scores: Sequence[Scores] = ()
    measured: Mapping[str, float] = field(default_factory=dict)
    edited: Collection[str] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    completeness: Mapping[str, float] = field(default_factory=dict)

    @property
    def ranking(self) -> list[str]:
        """Layers by the score of the method in front, best first."""
        return [name for scores in self.scores if scores.front for name in scores.values]

    def signs(self, entry: Entry) -> str:
        """★ for the best layer, ● for edited ones; a folded group has the signs of its layers."""
        inside = () if entry.folded is False or entry.reason else entry.layers
        best = any(name in inside for name in self.ranking[:1])
        edited = any(name in inside for name in self.edited)
        return "★" * best + "●" * edited

    def measured_of(self, entry: Entry) -> str:
        """What was measured of a layer, for people; empty where nothing was."""
        share = self.measured.get(entry.name) if entry.is_layer else None
        return "" if share is None else markup.percent(share)

    def describe(self, entry: Entry) -> str:
        """All that is known about an entry, in words."""
        name = entry.name or ROOT
        if entry.reason:
            return f"{name} cannot be edited: {entry.reason}"
        kind, prefix, ending = self.kinds.get(entry.name, ""), "", []
        words = [f"{name} ({kind})" if kind else name]
        if entry.is_group:
            words = [f"{name}: {markup.some(len(entry.inside), 'layer')}"]
            words += [f"{entry.refused} that cannot be edited"] * bool(entry.refused)
            prefix = "best inside by "
            ending = ["click to unfold" if entry.folded else "click to fold"]
        for scores in self.scores:
            words.append(f"{prefix}{scores.method} {scores.text(scores.of(entry))}")
        measured, signs = self.measured_of(entry), self.signs(entry)
        words += [f"measured after the edit {measured}"] * bool(measured)
        words += ["best"] * ("★" in signs) + ["edited"] * ("●" in signs)
        return " · ".join(words + ending)
