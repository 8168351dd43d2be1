"""Models of bags at the doors of models of images: what is refused, counted, saved and opened."""

from pathlib import Path
from typing import Any

import pytest
import torch

import softless
from softless.errors import UsageError
from softless.models.arguments import arguments
from tests.models.bags import bag_model, coordinates, features


@pytest.mark.parametrize(
    ("verb", "call"),
    [
        ("swap", lambda m, _: softless.swap(m, "xca")),
        ("optimize", lambda m, _: softless.optimize(m)),
        ("export", lambda m, path: softless.export(m, "onnx", path / "m.onnx")),
        ("export", lambda m, _: softless.edge(m, 64)),
        ("recover", lambda m, _: softless.recover(m, "xca", images=torch.zeros(16, 3, 32, 32))),
        ("image", lambda m, _: softless.explain(m, torch.zeros(1, 3, 32, 32))),
        ("image", lambda m, _: softless.stream(m, torch.zeros(3, 32, 32))),
    ],
)
def test_verbs_of_images_refuse_them(verb: str, call: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{verb}: this is a model of bags.*Bag.open"):
        call(bag_model("sima_bag_tiny"), tmp_path)


@pytest.mark.parametrize("name", ["sima_bag_tiny", "softmax_bag_tiny", "abmil_bag"])
def test_cost_counts_the_linear_layers(name: str) -> None:
    model: Any = softless.create_model(name, in_dim=24)
    small, large = (softless.cost(model, n).macs for n in (1000, 2000))
    linear = sum(
        m.weight.numel()
        for part, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and part != "head"
    )
    per_tile = (large - small) / 1000
    head = model.num_features
    assert per_tile >= linear
    if (
        name == "sima_bag_tiny"
    ):  # and two products with a 32 x 32 matrix for each head, a mean, a sum
        assert per_tile == linear + 2 * head * 32 + head + 1
    assert (
        softless.cost(model, (1000, 24)).macs == small == softless.cost(model, (1, 1000, 24)).macs
    )
    # beyond the tiles that are worked on at once, it is still the model as it is written
    assert (
        softless.cost(model, 20000).macs == small + (20000 - 1000) * per_tile or name[:4] == "soft"
    )
    with pytest.raises(UsageError, match="number of tiles"):
        softless.cost(model, (3, 64, 64))


def test_audit_names_the_gates() -> None:
    model = softless.create_model("sima_bag_tiny", in_dim=8, act="relu", position="fourier")
    assert {"exp", "sigmoid", "tanh"} <= {*softless.audit(model, 50).kinds}
    assert softless.audit(
        softless.create_model("sima_bag_tiny", in_dim=8, act="relu", pool="mean"), 50
    ).exp_free


@pytest.mark.parametrize("name", ["seqnorm_bag_tiny", "performer_bag_tiny", "max_bag"])
def test_a_saved_model_is_the_same_again(name: str, tmp_path: Path) -> None:
    settings = {} if name == "max_bag" else {"position": "fourier", "pool": "cls", "chunk": 50}
    model, x, where = bag_model(name, **settings), features(150), coordinates(150)
    folder = softless.save_weights(model, tmp_path / "saved", classes=["a", "b", "c"])
    again: Any = softless.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(again(x, where), model(x, where))
    assert again.pretrained_cfg["label_names"] == ["a", "b", "c"]
    assert again.chunk == model.chunk
    streamed = softless.stream(f"local-dir:{folder}", softless.Bag.of(x[0], where[0]), quiet=True)
    assert torch.allclose(streamed.logits, model(x, where), rtol=1e-5)
    with pytest.raises(UsageError, match="features as they are"):
        softless.save_weights(model, tmp_path / "other", data={"mean": [0.5]})


def test_their_arguments_are_known_without_building_them() -> None:
    accepted = arguments("sima_bag_small")
    assert accepted is not None
    assert {"in_dim", "pool", "position", "chunk", "token_scale"} <= {*accepted}
    assert accepted["token_scale"].default == "tokens"
    controls = arguments("abmil_bag")
    assert controls is not None
    assert not {"pool", "token_scale", "op"} & {*controls}
