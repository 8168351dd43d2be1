"""Models of bags: what they are, which there are, masks, pools and positions."""

import re
from typing import Any

import pytest
import torch

import softless
from softless.errors import UsageError
from softless.models.bag import bag_models
from tests.models.bags import bag_model, coordinates, features, operators, relative
from tests.models.lively import zeroed

POOLS = ("gated", "cls", "mean")
CONTROLS = ("abmil_bag", "mean_bag", "max_bag")
NAMES = [f"{op}_bag_tiny" for op in operators()] + [*CONTROLS]


def test_every_operator_that_streams_has_models_but_those_that_need_a_grid_or_a_row_a_token() -> (
    None
):
    streams = {name for name, op in softless.OPERATORS.items() if op.streaming}
    left = {"cosformer2d", "linformer", "soft", "softnorm"}
    assert {*operators()} & {*streams, "softmax"} == (streams - left) | {"softmax"}


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads"),
    [
        ("sima_bag_tiny", 128, 1, 4),
        ("seqnorm_bag_small", 256, 2, 4),
        ("softmax_bag_base", 512, 2, 8),
    ],
)
def test_sizes(name: str, width: int, depth: int, heads: int) -> None:
    model: Any = softless.create_model(name, in_dim=16, num_classes=5)
    assert model.num_features == width
    assert [block.attn.num_heads for block in model.blocks] == [heads] * depth
    assert model.blocks[0].mlp.fc1.out_features == 2 * width
    assert model(torch.zeros(2, 7, 16)).shape == (2, 5)
    assert model.forward_features(torch.zeros(2, 7, 16)).shape == (2, width)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_is_each_bag_alone(name: str, pool: str) -> None:
    if name in CONTROLS and pool != "gated":
        pytest.skip("a control has a pool of its own")
    model = bag_model(name, **({} if name in CONTROLS else {"pool": pool, "position": "fourier"}))
    lengths, where = (150, 37), coordinates(150, 2).clone()
    x = features(150, 2)
    mask = torch.arange(150) < torch.tensor(lengths)[:, None]
    x[~mask] = float("nan")
    where[1, 37:] = -1e6
    with torch.no_grad():
        batch = model(x, where, mask)
        alone = [model(x[i, None, :n], where[i, None, :n]) for i, n in enumerate(lengths)]
    assert relative(batch, torch.cat(alone)) < 1e-6


@pytest.mark.parametrize("name", [n for n in NAMES if n not in CONTROLS])
def test_without_attention_the_answer_is_another(name: str) -> None:
    model, x, where = bag_model(name), features(150), coordinates(150)
    with torch.no_grad():
        before = model(x, where)
        after = zeroed(model)(x, where)
    assert relative(after, before) > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_another_order_of_tiles_is_the_same_bag(name: str) -> None:
    if name == "nystrom_bag_tiny":
        pytest.skip("its landmarks are means of consecutive tiles: docs/bags.md says so")
    model, x, where = bag_model(name), features(150), coordinates(150)
    turned = torch.randperm(150, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert relative(model(x[:, turned], where[:, turned]), model(x, where)) < 2e-6


def test_where_the_slide_begins_does_not_matter_and_where_tiles_stand_does() -> None:
    model, x, where = (
        bag_model("sima_bag_tiny", position="fourier"),
        features(150),
        coordinates(150),
    )
    with torch.no_grad():
        here = model(x, where)
        assert torch.equal(model(x, where + torch.tensor([65536.0, 1024.0])), here)
        assert relative(model(x, where * 2), here) > 1e-2


@pytest.mark.parametrize("name", ["sima_bag_tiny", "abmil_bag"])
def test_scores_of_tiles_sum_to_one_over_those_that_count(name: str) -> None:
    model: Any = bag_model(name)
    x, mask = features(150, 2), torch.arange(150) < torch.tensor([[150], [37]])
    scores = model.tile_scores(x, None, mask)
    assert torch.allclose(scores.sum(1), torch.ones(2))
    assert not scores[1, 37:].any()
    h = model.pool.norm(model._tiles(x, None, mask)[0])
    pooled = (scores[..., None] * h).sum(1)
    assert relative(pooled, model.forward_features(x, None, mask)) < 1e-6
    with pytest.raises(UsageError, match="no gated pool"):
        bag_model("sima_bag_tiny", pool="mean").tile_scores(x)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, x: m(x[0]), "features[None]"),
        (lambda m, x: m(x[..., :3]), "(B, N, 24)"),
        (lambda m, x: m(x.long()), "floating"),
        (lambda m, x: m(x[:, :0]), "no tiles"),
        (lambda m, x: m(x, mask=torch.ones(1, 5)), "torch.bool"),
        (lambda m, x: m(x, mask=torch.zeros(1, 5, dtype=torch.bool)), "without a tile"),
        (lambda m, x: m(x), "coords_um (B, N, 2)"),
        (lambda m, x: m(x, torch.zeros(1, 5)), "(1, 5, 2)"),
    ],
)
def test_what_is_no_bag_is_refused(call: Any, says: str) -> None:
    model = bag_model("sima_bag_tiny", position="fourier")
    with pytest.raises(UsageError, match=re.escape(says)):
        call(model, features(5))


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("sima_bag_smal", {}, "sima_bag_small"),
        ("soft_bag_tiny", {}, "needs a grid"),
        ("linformer_bag_tiny", {}, "a row for each token"),
        ("nystrom_bag_tiny", {"pooling": "grid"}, "needs a grid"),
        ("mala_bag_tiny", {"rotate": True}, "needs a grid"),
        ("sima_bag_tiny", {"pool": "max"}, "cls, gated, mean"),
        ("sima_bag_tiny", {"position": "sines"}, "fourier"),
        ("sima_bag_tiny", {"img_size": 224}, "img_size"),
        ("sima_bag_tiny", {"chunk": -1}, "chunk=-1"),
        ("abmil_bag", {"pool": "cls"}, "pool"),
        ("sima_bag_tiny", {"pretrained": True}, "no released weights"),
        ("sima_bag_tiny", {"op": "xca"}, "xca_bag_small"),
    ],
)
def test_what_there_is_not_is_refused_with_the_nearest(
    name: str, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        softless.create_model(name, **arguments)


def test_they_are_listed_and_no_model_of_timm() -> None:
    import timm

    listed: Any = softless.list("models")
    assert {*bag_models()} < {*listed}
    assert not {*bag_models()} & {*timm.list_models()}
