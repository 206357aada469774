"""Layers as a tree of modules: dotted names folded into groups.  Pure; imports the rows only.

``stage3.block1.conv2`` is the layer ``conv2`` in the group ``block1`` in the group ``stage3``.  A
group that holds nothing but one group or one layer is written in one line with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from rectify_widgets.widgets.editability.layer_rows import ROOT, Row

SELF = "(itself)"
"""Label of a layer that holds other layers, inside its own group."""


@dataclass
class Node:
    """A group, or a layer where there is nothing inside."""

    name: str
    label: str
    parts: list[Node] = field(default_factory=list)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.parts)

    @property
    def layers(self) -> list[str]:
        """Names of the layers inside, a layer's own name for a layer."""
        return [name for part in self.parts for name in part.layers] if self.parts else [self.name]


def build_tree(names: Iterable[str]) -> Node:
    """The tree of the layers; groups stand where the first of their layers stands."""
    given = list(dict.fromkeys(names))
    root = Node("", "")
    groups = {"": root}
    holders = {name[:dot] for name in given for dot in _dots(name)}
    for name in given:
        above = root
        if name:
            for dot in _dots(name):
                above = _group(groups, above, name[:dot])
            if name in holders:
                above = _group(groups, above, name)
        label = SELF if name in holders else name.rpartition(".")[2] or ROOT
        above.parts.append(Node(name, label))
    root.parts = [_joined(part) for part in root.parts]
    return root


def _dots(name: str) -> list[int]:
    return [place for place, sign in enumerate(name) if sign == "."]


def _group(groups: dict[str, Node], above: Node, name: str) -> Node:
    if name not in groups:
        groups[name] = Node(name, name.rpartition(".")[2])
        above.parts.append(groups[name])
    return groups[name]


def _joined(node: Node) -> Node:
    """The node with every chain of only children written in one line."""
    if not node.parts:
        return node
    parts = [_joined(part) for part in node.parts]
    if len(parts) > 1:
        return Node(node.name, node.label, parts)
    only = parts[0]
    return Node(only.name, f"{node.label}.{only.label}", only.parts)


def group_names(tree: Node) -> list[str]:
    """Names of all groups, outer ones first."""
    found = []
    for part in tree:
        if part.parts:
            found += [part.name, *group_names(part)]
    return found


def groups_around(tree: Node, layer: str) -> list[str]:
    """Names of the groups that a layer is in, outermost first."""
    for part in tree:
        if part.parts and layer in part.layers:
            return [part.name, *groups_around(part, layer)]
    return []


def first_folds(tree: Node, rows: int) -> list[str]:
    """Groups to fold so that at most ``rows`` rows are seen, outer levels unfolded first.

    The outermost level is always seen, however long it is.
    """
    seen, level = len(tree.parts), [part for part in tree if part.parts]
    while level:
        below = sum(len(part.parts) for part in level)
        if seen + below > rows:
            return [name for part in level for name in (part.name, *group_names(part))]
        seen += below
        level = [part for group in level for part in group if part.parts]
    return []


def tree_rows(
    tree: Node,
    refused: Mapping[str, str],
    folded: Collection[str] = (),
    scores: Mapping[str, float] | None = None,
    depth: int = 0,
) -> list[Row]:
    """The rows that are seen while the groups ``folded`` are folded.

    With ``scores`` the parts of each group are ranked by the best score inside.
    """
    rows: list[Row] = []
    for part in tree.parts if scores is None else _ranked(tree, scores):
        if not part.parts:
            rows.append(Row(part.name, part.label, depth, refused.get(part.name, "")))
            continue
        shut = part.name in folded
        layers = part.layers
        inside = tuple(name for name in layers if name not in refused)
        rows.append(
            Row(
                part.name, part.label, depth,
                inside=inside, refused=len(layers) - len(inside), folded=shut,
            )
        )  # fmt: skip
        if not shut:
            rows += tree_rows(part, refused, folded, scores, depth + 1)
    return rows


def _ranked(tree: Node, scores: Mapping[str, float]) -> list[Node]:
    def best(part: Node) -> float:
        return max((scores[name] for name in part.layers if name in scores), default=float("-inf"))

    return sorted(tree.parts, key=lambda part: -best(part))
