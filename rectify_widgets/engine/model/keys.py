"""A layer as keys and values.  Imports torch only.

A layer multiplies its weight with one *key* at each *position* and adds the bias: a `Linear` has
one position for each token, a `Conv2d` one for each output pixel, whose key is the unfolded input
patch.  `Keys` stand for ``N × G × K × P`` numbers (samples, groups, key size, positions).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from rectify_widgets.engine.model.computed import used_weight
from rectify_widgets.engine.model.running import working_dtype

KEY_SPACES = ("patch", "channel")
SOME_ONLY = (
    "it is not called alike for all inputs (a mixture of experts?), so that its keys belong to no "
    "sample"
)
"""Why a layer is refused whose keys cannot be told apart by samples."""


@dataclass(frozen=True)
class EditableLayer:
    """One editable layer: its dotted name and what turns it into keys and values."""

    name: str
    module: nn.Conv2d | nn.Linear
    axis: int = 0
    """Dimension of the input that counts the samples; 1 where a linear layer's sequence is first."""
    computed: bool = False
    """Whether it multiplies with a weight that it computes from its own, see `computed`."""

    @property
    def is_convolution(self) -> bool:
        """Whether it has patches for keys."""
        return isinstance(self.module, nn.Conv2d)

    @property
    def groups(self) -> int:
        """Groups of a convolution, each with keys of its own; 1 for a linear layer."""
        return self.module.groups if isinstance(self.module, nn.Conv2d) else 1

    @property
    def weight(self) -> Tensor:
        """What it multiplies with."""
        kept = self.module.weight.detach()
        return used_weight(self.module, kept).to(kept) if self.computed else kept

    @property
    def outputs(self) -> int:
        """Output channels (convolution) or features (linear)."""
        return int(self.module.weight.shape[0])

    @property
    def key_size(self) -> int:
        """Numbers in one patch key: ``C_in / groups · kh · kw`` or the input features."""
        return math.prod(self.module.weight.shape[1:])

    @property
    def kind(self) -> str:
        """``"Conv2d 3×3"``, ``"Linear"`` and the like, for display."""
        if not isinstance(self.module, nn.Conv2d):
            return "Linear"
        kernel = "×".join(map(str, self.module.kernel_size))
        grouped = f", {self.groups} groups" if self.groups > 1 else ""
        return f"Conv2d {kernel}{grouped}"

    def keys(self, inputs: Tensor, samples: int) -> Keys:
        """The keys in the layer's ``inputs`` for ``N = samples`` model inputs.

        A linear layer inside windows sees more rows than that: positions of their sample.
        """
        inputs = inputs.detach().to(working_dtype(inputs.dtype))
        if isinstance(conv := self.module, nn.Conv2d):
            return Keys(self, pad(conv, inputs))
        rows = inputs.movedim(self.axis, 0)
        return Keys(self, rows.reshape(samples, -1, inputs.shape[-1]))

    def pixels(self, inputs: Tensor, samples: int) -> Tensor:
        """Channel keys ``N × G × C/G × P`` of the layer's inputs, one position an input pixel."""
        if not isinstance(self.module, nn.Conv2d):
            return self.keys(inputs, samples).unfold()
        inputs = inputs.detach().to(working_dtype(inputs.dtype))
        return inputs.reshape(samples, self.groups, inputs.shape[1] // self.groups, -1)

    def flat(self, weight: Tensor) -> Tensor:
        """The weight as ``G × O/G × K``."""
        return weight.detach().reshape(self.groups, self.outputs // self.groups, -1)

    def positions(self, outputs: Tensor, samples: int) -> Tensor:
        """Anything shaped like the layer's output as ``N × G × O/G × P``, as float32 or better."""
        outputs = outputs.detach().to(working_dtype(outputs.dtype))
        if isinstance(self.module, nn.Conv2d):
            return outputs.reshape(samples, self.groups, self.outputs // self.groups, -1)
        rows = outputs.movedim(self.axis, 0)
        return rows.reshape(samples, -1, 1, self.outputs).permute(0, 2, 3, 1)


def pad(conv: nn.Conv2d, inputs: Tensor) -> Tensor:
    """``inputs`` as the convolution pads them, in every padding mode, ``"same"`` included."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    amount = conv._reversed_padding_repeated_twice  # noqa: SLF001 - has no public name
    padded = functional.pad(inputs, amount, mode)
    # Plain strides: on the CPU the weight gradient of a strided 1×1 convolution writes past its
    # buffer in channels_last (uxlfoundation/oneDNN#6035), and `Keys.gather` is just that.
    return padded.flatten().view(padded.shape)


@dataclass(frozen=True, eq=False)
class Keys:
    """The keys of one layer on ``N`` samples, unfolded only where asked.

    Their products with a few vectors, and sums of them, are convolutions of the layer's input, at a
    fraction of the memory of unfolded patches.
    """

    layer: EditableLayer
    inputs: Tensor
    """Padded ``N × C × H × W`` of a convolution, ``N × P × K`` of a linear layer."""

    def __len__(self) -> int:
        return int(self.inputs.shape[0])

    def __sub__(self, other: Keys) -> Keys:
        return Keys(self.layer, self.inputs - other.inputs)

    def rows(self, which: slice) -> Keys:
        """The keys of some of the samples."""
        return Keys(self.layer, self.inputs[which])

    @property
    def positions(self) -> int:
        """Number of positions ``P`` of each sample."""
        return math.prod(self._grid()) if self.inputs.ndim == 4 else int(self.inputs.shape[1])

    def _grid(self) -> tuple[int, int]:
        """Height and width of a convolution's output."""
        conv = self.layer.module
        assert isinstance(conv, nn.Conv2d)  # noqa: S101 - a linear layer has no grid
        sides = zip(
            self.inputs.shape[2:], conv.dilation, conv.kernel_size, conv.stride, strict=True
        )
        height, width = ((size - d * (kernel - 1) - 1) // s + 1 for size, d, kernel, s in sides)
        return height, width

    def unfold(self, which: Tensor | None = None) -> Tensor:
        """The keys themselves, ``N × G × K × P``, at all positions or at those numbered."""
        conv, groups = self.layer.module, self.layer.groups
        if not isinstance(conv, nn.Conv2d):
            inputs = self.inputs if which is None else self.inputs[:, which.to(self.inputs.device)]
            return inputs.transpose(1, 2).unsqueeze(1)
        if which is None:
            keys = functional.unfold(self.inputs, conv.kernel_size, conv.dilation, 0, conv.stride)
        else:
            width = self._grid()[1]
            across = torch.arange(conv.kernel_size[1]) * conv.dilation[1]
            down = torch.arange(conv.kernel_size[0]) * conv.dilation[0]
            y = down[:, None, None] + which // width * conv.stride[0]
            x = across[None, :, None] + which % width * conv.stride[1]
            places = (y * self.inputs.shape[3] + x).flatten().to(self.inputs.device)
            keys = self.inputs.flatten(2).index_select(2, places)
        return keys.reshape(len(self), groups, self.layer.key_size, -1)

    def respond(self, vectors: Tensor) -> Tensor:
        """``vᵀ k`` for ``D`` vectors a group, ``G × D × K`` to ``N × G × D × P``."""
        conv, groups = self.layer.module, self.layer.groups
        vectors = vectors.to(self.inputs)
        if not isinstance(conv, nn.Conv2d):
            return (self.inputs @ vectors[0].T).transpose(1, 2).unsqueeze(1)
        weight = vectors.reshape(-1, *conv.weight.shape[1:])
        image = functional.conv2d(
            self.inputs, weight, None, conv.stride, 0, conv.dilation, groups=groups
        )
        return image.reshape(len(self), groups, vectors.shape[1], -1)

    def gather(self, weights: Tensor, *, each: bool = False) -> Tensor:
        """``Σ_p w_p k_p`` over samples and positions, ``N × G × D × P`` to ``G × D × K``.

        Of ``each`` sample by itself, ``N × G × D × K``.
        """
        conv, (samples, groups, count, _) = self.layer.module, weights.shape
        if not isinstance(conv, nn.Conv2d):
            to = "ndp,npk->ndk" if each else "ndp,npk->dk"
            return torch.einsum(to, weights[:, 0], self.inputs).unsqueeze(-3)
        apart = samples if each else 1  # their groups side by side in one convolution
        image = weights.reshape(-1, apart * groups * count, *self._grid())
        inputs = self.inputs.reshape(len(image), -1, *self.inputs.shape[2:])
        shape = (apart * groups * count, *conv.weight.shape[1:])
        total: Tensor = conv2d_weight(
            inputs, shape, image, conv.stride, 0, conv.dilation, apart * groups
        )
        return total.reshape(*[samples] * each, groups, count, -1)

    def squares(self) -> Keys:
        """Keys whose every number is squared."""
        return Keys(self.layer, self.inputs.square())

    def norms(self) -> Tensor:
        """``‖k_p‖``, ``N × G × P``."""
        ones = self.inputs.new_ones(self.layer.groups, 1, self.layer.key_size)
        return self.squares().respond(ones).squeeze(2).clamp_min(0).sqrt()

    def values(self) -> Tensor:
        """``W k`` without the bias, ``N × G × O/G × P``."""
        return self.respond(self.layer.flat(self.layer.weight))
