"""Bytes as input: the file normalises them as the run does, wherever its first convolution fills
up.
"""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import softless
from softless.errors import UsageError
from softless.experiment.groups import DataSpec
from softless.exporting import described
from softless.exporting.pixels import OfBytes, first_convolution
from tests.data.making import split_folders
from tests.evaluation.runs import run_folder
from tests.models.lively import lively

MEAN, STD = (0.2, 0.5, 0.7), (0.1, 0.25, 0.3)
# name, arguments, size, whether its first convolution fills images up
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, int], bool]] = {
    "vit": ("sima_deit_tiny_patch16_224", {"depth": 2, "patch_size": 8}, (32, 48), False),
    "xcit": ("sima_xcit_tiny_12_p16_224", {"depth": 2, "embed_dim": 32}, (64, 32), True),
    "cvt": (
        "sima_cvt_13_224",
        {"embed_dims": (16, 32, 32), "depths": (1, 1, 1), "num_heads": (1, 1, 2)},
        (64, 96),
        True,
    ),
    "pyramid": (
        "soft_tiny_224",
        {"embed_dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
        (64, 64),
        True,
    ),
}


def levels(size, channels=3, count=3):
    """Bytes (B, C, H, W), and the same as the model takes them."""
    pixels = torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8)
    mean, std = (torch.tensor(x[:channels])[:, None, None].double() for x in (MEAN, STD))
    return pixels, ((pixels.double() / 255 - mean) / std).float()


def built(name, form):
    """The model, lively, and the module that is recorded of it."""
    entry, args, size, _ = MODELS[name]
    model = softless.create_model(entry, img_size=size, **args)
    lively(model, torch.randn(2, 3, *size))
    return model, softless.edge(model, size, form), size


@pytest.mark.parametrize("form", ["plain", "edge"])
@pytest.mark.parametrize("name", MODELS)
def test_mean_and_scale_are_in_the_first_convolution(name, form):
    _, module, size = built(name, form)
    pixels, images = levels(size)
    taken = OfBytes(module, MEAN, STD, images)
    fills_up = MODELS[name][3]
    assert (taken.shift is None) != fills_up, "the mean is one subtraction where zeros fill up"
    assert taken.scale is None, "the scale is folded"
    with torch.no_grad():
        expected, answer = module.double()(images.double()), taken(pixels)
    apart = (answer - expected).abs().max() / expected.abs().max()
    assert apart <= 1e-6
    assert torch.equal(answer.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("padding", [0, 1, "same", "valid"])
def test_zeros_that_fill_up_stay_the_mean(padding):
    conv = nn.Conv2d(2, 4, 3, padding=padding, bias=padding == 1)
    pixels, images = levels((9, 7), channels=2)
    taken = OfBytes(conv, MEAN[:2], STD[:2], images)
    torch.testing.assert_close(taken(pixels), conv(images), rtol=1e-5, atol=1e-5)
    assert (taken.shift is None) == (padding in {0, "valid"})


class Filled(nn.Module):
    """Fills images up before its convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, images):
        return self.conv(nn.functional.pad(images, (0, 1, 0, 3)))


class Twice(nn.Module):
    """Something else reads the images too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, images):
        return self.conv(images) + images


class Grouped(nn.Module):
    """No plain convolution reads them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, groups=3)

    def forward(self, images):
        return self.conv(images)


@pytest.mark.parametrize("module", [Filled(), Twice(), Grouped(), nn.Flatten()])
def test_other_ways_to_read_images_are_right_too(module):
    pixels, images = levels((5, 7))
    taken = OfBytes(module, MEAN, STD, images)
    torch.testing.assert_close(taken(pixels), module(images), rtol=1e-5, atol=1e-5)
    assert taken.shift is not None, "none of them takes the mean into its bias"


def test_the_module_itself_is_not_touched():
    conv = nn.Conv2d(3, 4, 2)
    before = {name: tensor.clone() for name, tensor in conv.state_dict().items()}
    _, images = levels((8, 8))
    OfBytes(conv, MEAN, STD, images)
    for name, tensor in conv.state_dict().items():
        assert torch.equal(tensor, before[name])
    found = first_convolution(conv, images)
    assert found is not None
    assert not found.filled_up


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run over images of two classes."""
    folder = tmp_path_factory.mktemp("pixels")
    split_folders(
        folder / "data", {p: {"cat": n, "dog": n} for p, n in (("train", 6), ("test", 6))}
    )
    data = DataSpec(source="folder", path=str(folder / "data"), image_size=16, val_fraction=0.5)
    run_folder(folder / "run", ("cat", "dog"), data, mean=list(MEAN), std=list(STD))
    return folder


@pytest.mark.parametrize("form", ["plain", "edge"])
def test_a_file_of_bytes(folder, tmp_path, form):
    files = softless.export(folder / "run", ("pt2", "onnx"), tmp_path, form, pixels="uint8")
    assert files.ok, files
    exported = [softless.load_exported(file.path) for file in files.files]
    plain = softless.export(folder / "run", "onnx", tmp_path / "floats")
    floats = softless.load_exported(plain.path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))
    for file, report in zip(exported, files.files, strict=True):
        assert report.parity.difference <= 1e-5
        assert report.measured.agreement == 1.0
        image = file.prepare(picture)
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 16, 16))
        answer, expected = file(image[None]), floats(floats.prepare(picture)[None])
        torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-6)
        with pytest.raises(UsageError, match=r"takes torch\.uint8"):
            file(image[None].float())


def test_the_input_of_the_graph_is_of_bytes(folder, tmp_path):
    import onnx

    files = softless.export(folder / "run", "onnx", tmp_path, pixels="uint8")
    graph = onnx.load_model(files.path).graph
    kinds = {onnx.TensorProto.UINT8}
    assert {value.type.tensor_type.elem_type for value in graph.input} == kinds
    operators = [node.op_type for node in graph.node]
    assert operators.count("Cast") == 1
    assert operators.index("Conv") < 3, "nothing but the cast stands before the patches"


@pytest.mark.parametrize("dynamic", ["batch", "both"])
def test_bytes_of_any_number_and_size(folder, tmp_path, dynamic):
    files = softless.export(folder / "run", "onnx", tmp_path, dynamic=dynamic, pixels="uint8")
    exported = softless.load_exported(files.path)
    size = (16, 16) if dynamic == "batch" else (24, 32)
    images = torch.randint(0, 256, (5, 3, *size), dtype=torch.uint8)
    assert exported(images).shape == (5, 2)


def test_a_wrong_mean_is_caught(folder, tmp_path, monkeypatch):
    def planted(module, mean, std, images):
        return OfBytes(module, [value + 0.05 for value in mean], std, images)

    monkeypatch.setattr(described, "OfBytes", planted)
    files = softless.export(folder / "run", "pt2", tmp_path, pixels="uint8")
    assert not files.ok
    assert files.path.name == "model.pt2.failed"
    assert "differ from the model's" in files.files[0].faults[0]


def test_what_is_no_byte_is_refused(tmp_path):
    data = DataSpec(source="folder", path=None, image_size=16, in_chans=4)
    run = run_folder(tmp_path / "run", ("cat", "dog"), data, mean=[0.5] * 4, std=[0.5] * 4)
    with pytest.raises(UsageError, match="4 channels, which are framed as floats"):
        softless.export(run, "pt2", tmp_path / "out", pixels="uint8")
