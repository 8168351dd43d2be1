"""Tables of positions through every door: brought from the file's grid to the model's, or refused
in words; none is read on a grid that is not its own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor

import softless
from softless import UsageError
from softless.models import load_weights
from softless.models.positions import grids

NAME = "deit_tiny_patch16_224"
TINY: dict[str, Any] = {"depth": 1, "embed_dim": 48, "num_heads": 2, "num_classes": 3}
Size = tuple[int, int]


def small(size: Size, seed: int = 0, **other: Any) -> Any:
    torch.manual_seed(seed)
    return softless.create_model(NAME, op="sima", img_size=size, **TINY, **other).eval()


def learned(grid: Size, channels: int, seed: int = 0, coarse: int = 3) -> Tensor:
    """A table (1, h w, C) whose neighbours are alike, as training leaves it: noise of a few points,
    drawn out, and a little noise.
    """
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(1, channels, coarse, coarse, generator=generator)
    cells = F.interpolate(points, grid, mode="bicubic", align_corners=True).flatten(2).mT
    return cells + 0.1 * torch.randn(cells.shape, generator=generator)


def places(size: Size) -> Size:
    return size[0] // 16, size[1] // 16


# pixels of the file's images, and of the model's
KINDS: dict[str, tuple[Size, Size, dict[str, Any]]] = {
    "not square, and square": ((48, 112), (64, 64), {}),
    "as many places, square": ((64, 144), (96, 96), {}),
    "as many places, turned": ((64, 144), (144, 64), {}),
    "square, and as many that are not": ((96, 96), (64, 144), {}),
    "other size": ((64, 64), (96, 96), {}),
    "register tokens": ((64, 144), (96, 96), {"reg_tokens": 4}),
    "no token ahead": ((64, 144), (96, 96), {"class_token": False, "global_pool": "avg"}),
    "the same": ((64, 144), (64, 144), {}),
}


def _folder(folder: Path, size: Size, pixels: Size, other: dict[str, Any]) -> Any:
    load_weights(model := small(size, 2, **other), folder)
    return model


def _file(folder: Path, size: Size, pixels: Size, other: dict[str, Any]) -> Any:
    load_weights(model := small(size, 2, **other), folder / "model.safetensors")
    return model


def _told(folder: Path, size: Size, pixels: Size, other: dict[str, Any]) -> Any:
    load_weights(model := small(size, 2, **other), _bare(folder), image_size=pixels)
    return model


def _local_dir(folder: Path, size: Size, pixels: Size, other: dict[str, Any]) -> Any:
    return softless.create_model(f"local-dir:{folder}", pretrained=True, img_size=size)


def _timms(folder: Path, size: Size, pixels: Size, other: dict[str, Any]) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=size)


def _checkpoint_path(folder: Path, size: Size, pixels: Size, other: dict[str, Any]) -> Any:
    return softless.create_model(
        NAME, op="sima", img_size=size, checkpoint_path=str(folder), **TINY, **other
    )


def _bare(folder: Path) -> Path:
    """The same weights as a file that says nothing of them."""
    path = folder.with_name("bare.pth")
    torch.save(timm.models.load_state_dict(str(folder / "model.safetensors")), path)
    return path


DOORS: dict[str, Callable[[Path, Size, Size, dict[str, Any]], Any]] = {
    "a folder": _folder,
    "its file": _file,
    "a bare file and image_size": _told,
    "local-dir:": _local_dir,
    "timm's local-dir:": _timms,
    "checkpoint_path": _checkpoint_path,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", DOORS)
def test_a_table_comes_to_the_models_grid(door: str, kind: str, tmp_path: Path) -> None:
    pixels, size, other = KINDS[kind]
    source = small(pixels, 1, **other)
    softless.save_weights(source, tmp_path / "w")
    prefix = source.pos_embed.shape[1] - places(pixels)[0] * places(pixels)[1]
    expected = resample_abs_pos_embed(
        source.pos_embed, list(places(size)), list(places(pixels)), num_prefix_tokens=prefix
    )
    found = DOORS[door](tmp_path / "w", size, pixels, other)
    assert torch.equal(found.pos_embed, expected)
    assert torch.equal(found.head.weight, source.head.weight)


BARE = [kind for kind in KINDS if kind not in {"other size", "the same"}]


@pytest.mark.parametrize("kind", BARE)
def test_a_learned_table_of_another_grid_is_refused_where_the_file_does_not_say_it(
    kind: str,
) -> None:
    pixels, size, other = KINDS[kind]
    source, model = small(pixels, 1, **other), small(size, 2, **other)
    rows = places(pixels)[0] * places(pixels)[1]
    with torch.no_grad():
        source.pos_embed[:, -rows:] = learned(places(pixels), 48, coarse=2)
    before = model.pos_embed.clone()
    with pytest.raises(UsageError) as told:
        load_weights(model, source.state_dict())
    assert torch.equal(model.pos_embed, before)
    assert "\n" not in str(told.value)
    if rows == places(size)[0] * places(size)[1]:
        assert f"rows are alike as on {places(pixels)[0]} x {places(pixels)[1]}" in str(told.value)
        assert f"Pass image_size={pixels}" in str(told.value)
    load_weights(model, source.state_dict(), image_size=pixels)
    assert model.pos_embed.shape == before.shape


@pytest.mark.parametrize("rows", [36, 64, 144, 196, 256, 784])
@pytest.mark.parametrize("coarse", [2, 3, 5])
def test_a_learned_table_tells_its_grid_and_never_another(rows: int, coarse: int) -> None:
    """Where the grid is fine enough for its neighbours to be alike; a rougher one tells nothing,
    and that is said.
    """
    for height, width in grids(rows):
        table = learned((height, width), 48, coarse=coarse)
        fine = min(height, width) > 2 * coarse
        for model_grid in grids(rows):
            model = small((16 * model_grid[0], 16 * model_grid[1]))
            state = {
                **model.state_dict(),
                "pos_embed": torch.cat([model.pos_embed[:, :1], table], dim=1),
            }
            if model_grid == (height, width):
                assert not load_weights(model, state).assumed or not fine
            elif fine:
                with pytest.raises(UsageError, match=f"alike as on {height} x {width}"):
                    load_weights(model, state)


@pytest.mark.parametrize("rows", [12, 36, 64, 196])
def test_a_table_of_noise_is_taken_for_the_models_and_that_is_said(rows: int) -> None:
    for height, width in grids(rows):
        source, model = (small((16 * height, 16 * width), seed) for seed in (1, 2))
        found = load_weights(model, source.state_dict())
        assert found.assumed == {"pos_embed": (height, width)}
        assert (
            f"  assumed  pos_embed: its places are those of {height} x {width}, which nothing in "
            "the file says" in str(found)
        )
        assert torch.equal(model.pos_embed, source.pos_embed)


def test_a_model_made_with_a_checkpoint_logs_once_what_was_assumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(small((64, 144), 1).state_dict(), tmp_path / "w.pth")
    softless.create_model(
        NAME, op="sima", img_size=(64, 144), checkpoint_path=str(tmp_path / "w.pth"), **TINY
    )
    (said,) = [record for record in caplog.records if record.name == "softless.models"]
    assert (
        "w.pth: pos_embed: its places are those of 4 x 9, which nothing in the file says"
        in said.getMessage()
    )
    caplog.clear()
    softless.save_weights(small((64, 144), 1), tmp_path / "w")
    softless.create_model(
        NAME, op="sima", img_size=(64, 144), checkpoint_path=str(tmp_path / "w"), **TINY
    )
    assert not caplog.records  # the folder says it


def test_sines_of_two_axes_are_as_good_as_learned() -> None:
    """The fixed tables of masked autoencoders and ViT's simpler baseline."""
    from timm.layers import build_sincos2d_pos_embed

    table = build_sincos2d_pos_embed([14, 14], dim=48)[None]
    model, other = small((224, 224)), small((112, 448))
    state = {**model.state_dict(), "pos_embed": torch.cat([model.pos_embed[:, :1], table], dim=1)}
    assert load_weights(model, state).assumed == {}
    with pytest.raises(UsageError, match="alike as on 14 x 14"):
        load_weights(other, state)


def test_pyramids_know_the_grid_of_each_stage(tmp_path: Path) -> None:
    few: dict[str, Any] = {
        "depths": (1, 1, 1, 1),
        "embed_dims": (16, 16, 32, 32),
        "num_heads": 2,
        "num_classes": 3,
    }
    make = lambda size: softless.create_model("soft_tiny_224", img_size=size, parity=False, **few)  # noqa: E731
    source: Any = make((64, 128))
    softless.save_weights(source, tmp_path / "w")
    for size in ((128, 64), (96, 96)):
        for path in (tmp_path / "w", tmp_path / "w" / "model.safetensors"):
            model: Any = make(size)
            resized = load_weights(model, path).resized
            assert len(resized) == 4
            for number in range(4):
                stage, other = (
                    model.get_submodule(f"stage{number}"),
                    source.get_submodule(f"stage{number}"),
                )
                assert torch.equal(stage.pos_embed, other.positions(*stage.pos_grid))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (64, 80),
            r"pos_embed has 36 places, and images of 64 x 80 pixels have 4 x 5: give image_size=",
        ),
        (0, r"image_size=0: give pixels, as 224, or \(height, width\)"),
        ((96,), r"image_size=\(96,\): give pixels"),
        ("96", "image_size='96': give pixels"),
    ],
)
def test_a_size_that_cannot_be_is_refused(given: Any, message: str) -> None:
    model = small((96, 96), 1)
    with pytest.raises(UsageError, match=message):
        load_weights(small((64, 144), 2), model.state_dict(), image_size=given)


def test_weights_come_from_one_place(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="both say where the weights come from"):
        softless.create_model(NAME, op="sima", pretrained=True, checkpoint_path=str(tmp_path / "w"))
    source: Any = softless.create_model("xcit_nano_12_p16_224", op="sima", depth=4, num_classes=3)
    softless.save_weights(source, tmp_path / "w")
    again: Any = softless.create_model(
        "xcit_nano_12_p16_224",
        op="sima",
        depth=4,
        num_classes=3,
        checkpoint_path=str(tmp_path / "w"),
    )
    assert torch.equal(again.head.weight, source.head.weight)
    maps: Any = softless.create_model(
        "sima_xcit_nano_12_p16_224",
        depth=4,
        features_only=True,
        checkpoint_path=str(tmp_path / "w"),
    )
    x = torch.randn(1, 3, 32, 64)
    expected: Any = softless.create_model(
        f"local-dir:{tmp_path / 'w'}", pretrained=True, features_only=True
    )
    assert all(torch.equal(one, other) for one, other in zip(maps(x), expected(x), strict=True))
