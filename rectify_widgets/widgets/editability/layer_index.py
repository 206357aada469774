"""What layers there are, for the lists of layers: from a model, or from what `localize` has found.

Imports the engine's layers and the rooms of rows and trees; no ipywidgets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from torch import nn

from rectify_widgets.engine.base.checks import check_choice, nearest
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.localization import RANKING_METHODS, Localization
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.running import unwrap
from rectify_widgets.widgets.editability import layer_tree
from rectify_widgets.widgets.editability.layer_rows import Row, interleave, list_rows

Found: TypeAlias = "Localization | Sequence[Localization] | Mapping[str, Localization]"
"""One localisation, or one for each of several methods."""


class LayerIndex:
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
        self.kinds = dict(kinds)
        self._names = interleave(self.order, self.refused, registered)
        self.tree = layer_tree.build_tree(self._names)
        self.groups = tuple(layer_tree.group_names(self.tree))

    @classmethod
    def of_model(cls, model: nn.Module, pairs: SamplePairs) -> LayerIndex:
        """The layers of a model, which is run once on a clean sample."""
        catalog = editable_layers(model, pairs.clean[:1])
        kinds = {layer.name: layer.kind for layer in catalog}
        registered = [name for name, _ in unwrap(model).named_modules()]
        return cls(tuple(catalog.editable), catalog.refused, kinds, registered)

    @classmethod
    def of_found(cls, found: Sequence[Localization]) -> LayerIndex:
        """The layers that were scored, as far as the longest of several localisations knows."""
        longest = max(found, key=lambda one: len(one.order))
        return cls(longest.order, longest.refused, longest.kinds)

    def rows(
        self, view: str, ranking: Mapping[str, float] | None, folded: Collection[str]
    ) -> list[Row]:
        """All rows of a view; with scores, best first, in their order."""
        if view == "tree":
            return layer_tree.tree_rows(self.tree, self.refused, folded, ranking)
        return list_rows(self._names, self.refused, ranking)

    def around(self, layer: str) -> list[str]:
        """The groups that a layer is in."""
        return layer_tree.groups_around(self.tree, layer)

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

    def check_found(self, argument: str, found: Sequence[Localization]) -> None:
        """Raise a `ValueError` unless everything that was scored is one of these layers."""
        for one in found:
            for name in one.scores:
                if name not in self.order:
                    raise ValueError(
                        f"{argument}: scores {name!r}, which is no layer here"
                        f"{nearest(name, self.order)}; show it in a viewer of its own"
                    )


def check_found(argument: str, found: object) -> list[Localization]:
    """One localisation or several as a list, each of another method."""
    if isinstance(found, Mapping):
        for name, one in found.items():
            if isinstance(one, Localization) and one.method != name:
                raise ValueError(
                    f"{argument}: got a Localization by {one.method!r} under {name!r}, "
                    "want each under the name of its method"
                )
        found = list(found.values())
    several: list[Localization] = []
    for one in found if isinstance(found, list | tuple) else [found]:
        if not isinstance(one, Localization):
            raise TypeError(
                f"{argument}: got {type(one).__name__}, want a Localization, or a list or dict "
                "of them"
            )
        if not one.scores:
            raise ValueError(f"{argument}: got a Localization without scores, want some")
        check_choice("method", one.method, RANKING_METHODS)
        several.append(one)
    methods = [one.method for one in several]
    if not methods or len(set(methods)) < len(methods):
        raise ValueError(
            f"{argument}: got {', '.join(methods) or 'none'}, want one Localization a method"
        )
    return several
