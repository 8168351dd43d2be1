"""Maps of every registered model, of what `swap` changes, and of runs of every task."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import softless
from softless import OPERATORS
from softless.cli.explain import explain as draw
from softless.convert import swap
from softless.errors import UsageError
from softless.inference import optimize
from softless.layers import Attention
from softless.models import create_model
from softless.models.variants import ENTRIES, VARIANTS
from softless.recipes import get_recipe
from softless.saliency import Saliency, explain, figure
from softless.tasks.detection.model import detector
from softless.tasks.loaded import load_run
from softless.tasks.segmentation.model import segmenter
from softless.training import fit
from tests.convert.test_swap import SMALL as SWAPPED
from tests.models.kinds import FIRST, FIRST_ENTRIES, SMALLEST

SIZE = (64, 96)


def image(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(5))


def grid_of(model: Any, layer: int) -> tuple[int, int]:
    """Of the queries of a layer, by what the model tells of its features."""
    side = model.feature_info[layer]["reduction"]
    return SIZE[0] // side, SIZE[1] // side


def check(found: Saliency, grid: tuple[int, int], keys: tuple[int, int]) -> None:
    assert found.grid == grid == tuple(found.query.shape[-2:])
    assert tuple(found.key.shape[-2:]) == keys
    for map_ in (found.query, found.key):
        assert map_.isfinite().all()
        assert map_.max() == 1  # a map of its own, not a constant


@pytest.mark.parametrize(
    "name", [name for name, entry in ENTRIES.items() if entry.alias_of is None]
)
def test_every_registered_model(name: str) -> None:
    host = ENTRIES[name].variant.host
    model = create_model(name, num_classes=3, **SMALLEST[host]).eval()
    grid = grid_of(model, -1)
    for number, layer in enumerate(m for m in model.modules() if isinstance(m, Attention)):
        found = explain(model, image(*SIZE), layer=number)
        assert found.operator == layer.op.name
    check(found, grid, layer.key_grid(*grid))
    assert (found.class_row is not None) == (
        name.startswith("sima") if host == "xcit" else layer.op.implied_matrix
    )


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("host", FIRST)
def test_every_operator_in_every_host(host: str, op: str) -> None:
    kind = next(variant.host for variant in VARIANTS if variant.name == host)
    try:
        model = create_model(host, op=op, num_classes=3, img_size=SIZE, **SMALLEST[kind]).eval()
    except UsageError as error:
        pytest.skip(str(error))
    first = next(m for m in model.modules() if isinstance(m, Attention))
    found = explain(model, image(*SIZE), layer=0)
    grid = grid_of(model, 0)
    check(found, grid, first.key_grid(*grid))


@pytest.mark.parametrize("name", SWAPPED)
def test_every_family_that_is_swapped(name: str) -> None:
    arguments, side = SWAPPED[name]
    model = timm.create_model(name, num_classes=3, **arguments).eval()
    swap(model, "sima")
    last = [m for m in model.modules() if isinstance(m, Attention)][-1]
    found = explain(model, image(side, side))
    check(found, found.grid, last.key_grid(*found.grid))
    assert found.grid[0] == found.grid[1]


def norms(values: Tensor, grid: tuple[int, int], prefix: int = 0) -> Tensor:
    """The map of projected tokens (1, N, C) by the paper's words: l1-normalised over tokens, l2
    over channels, rescaled.
    """
    hat = values.double() / values.double().abs().sum(1, keepdim=True)
    map_ = hat.square().sum(2).sqrt()[:, prefix:].unflatten(1, grid)
    return ((map_ - map_.min()) / (map_.max() - map_.min())).float()


def outputs(model: nn.Module, paths: list[str], x: Tensor) -> list[Tensor]:
    """What some modules of a model give."""
    seen: list[Tensor] = []
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda _, __, out: seen.append(out))
        for path in paths
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_cvt_has_its_keys_on_their_own_grid() -> None:
    model = create_model("sima_cvt_13_224", num_classes=3, **SMALLEST["cvt"]).eval()
    q, k = outputs(
        model, ["stage2.blocks.1.attn.proj_q", "stage2.blocks.1.attn.proj_k"], image(*SIZE)
    )
    found = explain(model, image(*SIZE))
    torch.testing.assert_close(found.query, norms(q, (4, 6), 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.key, norms(k, (2, 3), 1), atol=1e-5, rtol=1e-5)
    first = explain(model, image(*SIZE), layer=0)  # without a class token
    assert first.class_row is None
    shown = Image.new("RGB", SIZE[::-1])
    assert figure(shown, found).size[1] == figure(shown, first).size[1]


def test_pvt_has_its_keys_on_their_own_grid() -> None:
    model = timm.create_model("pvt_v2_b0", num_classes=3, depths=(1, 1, 1, 1)).eval()
    swap(model, "sima")
    block = "stages.1.blocks.0.attn"
    q, kv = outputs(model, [f"{block}.q", f"{block}.kv"], image(*SIZE))
    found = explain(model, image(*SIZE), layer=1)
    torch.testing.assert_close(found.query, norms(q, (8, 12)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.key, norms(kv.chunk(2, -1)[0], (2, 3)), atol=1e-5, rtol=1e-5)


def test_rotary_positions_turn_what_is_shown() -> None:
    """The operator sees q and k turned, so the maps show them turned: l1 norms change under a
    rotation.
    """
    arguments, side = SWAPPED["eva02_tiny_patch14_224"]
    model = timm.create_model("eva02_tiny_patch14_224", num_classes=3, **arguments).eval()
    swap(model, "sima")
    layer: Any = model.get_submodule("blocks.0.attn")
    seen: list[Tensor] = []
    taken = layer._turned

    def turned(x: Tensor, rope: Tensor, like: Tensor) -> Tensor:
        seen.append(taken(x, rope, like))
        return seen[-1]

    layer._turned = turned
    found = explain(model, image(side, side))
    q = seen[-2].transpose(1, 2).flatten(2)
    torch.testing.assert_close(found.query, norms(q, found.grid, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    FIRST_ENTRIES,
)
def test_an_optimized_model_shows_what_its_model_shows(name: str) -> None:
    model = create_model(name, num_classes=3, **SMALLEST[ENTRIES[name].variant.host]).eval()
    plain, fast = (
        explain(model, image(*SIZE)),
        explain(optimize(model, torch.float32), image(*SIZE)),
    )
    torch.testing.assert_close(fast.query, plain.query, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(fast.key, plain.key, atol=1e-3, rtol=1e-3)


def test_of_a_detector_the_host_is_shown_as_it_sees_the_image() -> None:
    args = {**SMALLEST["xcit"], "op": "sima", "depth": 4}
    model = detector(
        "xcit_nano_12_p16_224", args, classes=2, width=16, min_size=64, max_size=200
    ).eval()
    found = explain(model, image(48, 60))  # resized to 64 x 80, filled up to 64 x 96
    check(found, (4, 6), (4, 6))
    assert (found.layer, found.layers) == (3, 4)
    seen = model.framed(image(48, 60))
    assert seen.shape == (1, 3, 64, 96)
    host = create_model("xcit_nano_12_p16_224", num_classes=0, **args)
    # without class attention, which nothing reads
    host.load_state_dict(model.host.state_dict(), strict=False)
    torch.testing.assert_close(found.query, explain(host.eval(), seen).query)


def test_of_a_segmenter_the_host_is_shown() -> None:
    args = {**SMALLEST["pyramid"], "op": "sima"}
    model = segmenter("soft_pyramid_tiny_224", args, classes=2, width=16).eval()
    found = explain(model, image(50, 70), layer=0)
    check(found, (16, 24), (16, 24))


@pytest.mark.parametrize("recipe", ["folder", "nuclei", "cards", "vessels", "aerial", "dino"])
def test_runs_of_every_task(recipe: str, tmp_path: Path) -> None:
    fit(get_recipe(recipe).quick(tmp_path / "data"), tmp_path / "run", device="cpu", progress=False)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    drawn = draw(str(tmp_path / "run"), tmp_path / "one.png", out=tmp_path / "maps", device="cpu")
    with Image.open(drawn.files[0]) as sheet:
        assert sheet.width > 3 * 300
    run = load_run(tmp_path / "run")
    forms = [
        pixels,
        Image.fromarray(pixels),
        tmp_path / "one.png",
        run.transform(Image.fromarray(pixels)),
    ]
    first, *rest = (softless.explain(tmp_path / "run", form).query for form in forms)
    # the model knows how its images are prepared
    for other in [*rest, softless.explain(run.model, pixels).query]:
        torch.testing.assert_close(other, first)


def test_forms_of_an_image_that_are_none() -> None:
    model = create_model("sima_deit_tiny_patch16_224", **SMALLEST["vit"])
    for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8)):
        with pytest.raises(UsageError, match=r"give bytes \(uint8\)"):
            explain(model, wrong)
    with pytest.raises(UsageError, match="image is a list"):
        explain(model, [1])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no run folder at no/such/run"):
        softless.explain("no/such/run", image(*SIZE))


def test_tokens_without_a_grid_are_one_sentence() -> None:
    model = timm.create_model("pit_ti_224", num_classes=3).eval()
    swap(model, "sima")
    with pytest.raises(UsageError, match=r"does not tell where the .* tokens of this layer stand"):
        explain(model, image(224, 224))


@pytest.mark.parametrize(
    ("name", "arguments", "size", "grid"),
    [
        (
            "vit_tiny_patch16_224",
            {"dynamic_img_size": True, "dynamic_img_pad": True},
            (60, 90),
            (4, 6),
        ),
        (
            "vit_small_patch14_reg4_dinov2",
            {"dynamic_img_size": True, "img_size": 56},
            (56, 84),
            (4, 6),
        ),
        ("xcit_nano_12_p16_224", {}, (60, 90), (4, 6)),  # timm's stem rounds up
        ("vit_tiny_r_s16_p8_224", {"img_size": 64}, (64, 64), (2, 2)),
    ],
)
def test_filled_up_images_and_registers_have_their_places(
    name: str, arguments: dict[str, Any], size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """Nothing but the patches is drawn, each in its place: tokens beside the grid are told from
    those on it.
    """
    model: Any = timm.create_model(name, num_classes=3, depth=1, **arguments).eval()
    swap(model, "sima")
    found = explain(model, image(*size))
    assert found.grid == grid
    (q,) = outputs(model, ["blocks.0.attn.qkv"], image(*size))
    prefix = q.shape[1] - grid[0] * grid[1]
    assert prefix in {0, model.num_prefix_tokens}
    torch.testing.assert_close(
        found.query, norms(q.chunk(3, -1)[0], grid, prefix), atol=1e-5, rtol=1e-5
    )
