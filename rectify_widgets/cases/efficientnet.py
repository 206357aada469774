"""EfficientNet-Lite as a module: what weights published for it are loaded into.  Imports the cases.

EfficientNet (Tan and Le 2019) in the variants for small devices that TensorFlow published in 2020: no
squeeze-and-excitation, ReLU6 for swish, and a stem and head of fixed width.  Written from those facts.
Module names are what the widgets show and read like those of the shipped cases' networks: ``stem``,
``stage2.block0.expand``, ``stage2.block0.depthwise``, ``stage2.block0.project``, ``head``,
``classifier``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import pad

from rectify_widgets.cases.networks import Normalization

STAGES = (
    # expansion, channels, blocks, stride of the first block, kernel
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""Those of EfficientNet-B0."""
STEM, HEAD, CLASSES = 32, 1280, 1000
MEAN, STD = 127 / 255, 128 / 255
"""``(x − 127) / 128`` of bytes, in units of [0, 1]."""
EPSILON = 1e-3
"""Of the batch norms, as in TensorFlow; torch's own default is 1e-5."""


class SamePadding(nn.Module):
    """Zeros round an image so that a convolution without padding gives ``ceil(side / stride)``.

    TensorFlow's ``"SAME"``: where the zeros do not come out even, the extra one is below and to the
    right, which no ``padding=`` of a torch convolution does.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """``N × C × H × W``, padded."""
        (top, bottom), (left, right) = (self._split(side) for side in x.shape[-2:])
        return pad(x, (left, right, top, bottom))

    def _split(self, side: int) -> tuple[int, int]:
        reach = (-(-side // self.stride) - 1) * self.stride + self.kernel
        missing = max(reach - side, 0)
        return missing // 2, missing - missing // 2

    def extra_repr(self) -> str:
        """What `print` of the network says."""
        return f"kernel={self.kernel}, stride={self.stride}"


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow again (Sandler et al. 2018).

    A way round it where neither the size nor the number of channels changes.  ``expansion`` 1
    leaves the widening out.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, expansion: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.expand: nn.Module = nn.Identity()
        self.expand_norm: nn.Module = nn.Identity()
        self.expand_relu: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = nn.Conv2d(channels_in, wide, 1, bias=False)
            self.expand_norm = nn.BatchNorm2d(wide, eps=EPSILON)
            self.expand_relu = nn.ReLU6(inplace=True)
        even = stride == 1  # the convolution itself can pad evenly, and copies nothing for that
        self.pad = nn.Identity() if even else SamePadding(kernel, stride)
        around = kernel // 2 if even else 0
        self.depthwise = nn.Conv2d(wide, wide, kernel, stride, around, groups=wide, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(wide, eps=EPSILON)
        self.relu = nn.ReLU6(inplace=True)
        self.project = nn.Conv2d(wide, channels_out, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(channels_out, eps=EPSILON)
        self.around = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """``N × channels_in × H × W`` to ``N × channels_out`` and height and width over stride."""
        y = self.expand_relu(self.expand_norm(self.expand(x)))
        y = self.relu(self.depthwise_norm(self.depthwise(self.pad(y))))
        out: Tensor = self.project_norm(self.project(y))
        return x + out if self.around else out


class EfficientNetLite(nn.Module):
    """Input ``N × 3 × H × W`` in [0, 1], normalised inside; output ``N × 1000`` logits.

    Args:
        width: factor of the channels of each stage, which are rounded to multiples of eight.
        depth: factor of the blocks of each stage but the first and the last, rounded up.

    Example:
        >>> network = rw.cases.pretrained.EfficientNetLite()  # untrained
        >>> len(rw.editable_layers(network).editable)
        50
    """

    def __init__(self, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        self.normalize = Normalization((MEAN,) * 3, (STD,) * 3)
        self.pad = SamePadding(3, 2)
        self.stem = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self.stem_norm = nn.BatchNorm2d(STEM, eps=EPSILON)
        self.relu = nn.ReLU6(inplace=True)
        before = STEM
        for number, (expansion, channels, blocks, stride, kernel) in enumerate(STAGES, start=1):
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            for index in range(blocks if number in {1, len(STAGES)} else math.ceil(depth * blocks)):
                after = _rounded(width * channels)
                stage[f"block{index}"] = InvertedResidual(
                    before,
                    after,
                    expansion=expansion,
                    kernel=kernel,
                    stride=stride if index == 0 else 1,
                )
                before = after
            self.add_module(f"stage{number}", nn.Sequential(stage))
        self.head = nn.Conv2d(before, HEAD, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(HEAD, eps=EPSILON)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """``N × 3 × H × W`` in [0, 1] to ``N × 1000`` logits."""
        x = self.relu(self.stem_norm(self.stem(self.pad(self.normalize(images)))))
        for number in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"stage{number}")(x)
        x = self.relu(self.head_norm(self.head(x)))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


def _rounded(channels: float) -> int:
    """The nearest multiple of eight, or the next one where that takes over a tenth away."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


PARTS = {
    "_expand_conv": "expand",
    "_bn0": "expand_norm",
    "_depthwise_conv": "depthwise",
    "_bn1": "depthwise_norm",
    "_project_conv": "project",
    "_bn2": "project_norm",
}
"""Names of a block's modules in the published file, and here."""


def renamed(tensors: Mapping[str, Tensor], model: EfficientNetLite) -> dict[str, Tensor]:
    """Tensors of the published file by the names of ``model``; unknown names stay."""
    names = {"_conv_stem": "stem", "_bn0": "stem_norm"}
    names |= {"_conv_head": "head", "_bn1": "head_norm", "_fc": "classifier"}
    blocks = [name for name, part in model.named_modules() if isinstance(part, InvertedResidual)]
    for number, block in enumerate(blocks):
        names |= {f"_blocks.{number}.{part}": f"{block}.{own}" for part, own in PARTS.items()}
    split = {name: name.rpartition(".") for name in tensors}
    return {
        f"{names.get(module, module)}.{leaf}": tensors[name]
        for name, (module, _, leaf) in split.items()
    }
