"""Tables of positions of a checkpoint, brought to the model's grid.

A table has a row for each place of a grid and does not say which grid: 36 places are 6 x 6, 4 x 9
or 9 x 4. What does: the folder that `save_weights` writes, the caller, and a table that has learned
something, whose neighbours are alike on its own grid and not on another one.
"""
# R places, C channels

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from softless.errors import UsageError
from softless.models.hosts import HOSTS
from softless.models.pyramid import Pyramid, Stage

Size: TypeAlias = int | tuple[int, int]
Sides: TypeAlias = tuple[int, int]
LONGEST = 4  # times the other side, of grids that are asked of a table
ALIKE = 0.5  # times what noise has: a step between neighbours that tells a grid,
NEARER = 0.8  # if it is besides so many times what the assumed grid has, or less


# tokens that may stand before the grid of a table
TOKENS = {name for host in HOSTS.values() for way in host.passes for name in way.prefix}


class Places(NamedTuple):
    """What a table of positions has a row for, in the file and in the model."""

    prefix: int  # tokens before the grid: class and register tokens
    rows: int  # of the file's grid
    grid: Sides  # the model's
    reduction: tuple[float, float]  # pixels of an image to one place of the model's grid

    def of_images(self, name: str, size: Sides) -> Sides | None:
        """The file's grid for images of so many pixels; None where they are no whole number of
        places.

        Raises:
            UsageError: they are, and the table has another number of places.
        """
        height, width = (side / pixels for side, pixels in zip(size, self.reduction, strict=True))
        before = round(height), round(width)
        if before[0] * before[1] == self.rows:
            return before
        if (height, width) == before:
            raise UsageError(
                f"{name} has {self.rows} places, and images of {size[0]} x {size[1]} pixels have "
                f"{before[0]} x {before[1]}: "
                "give image_size= of the images that the file's positions were made for"
            )
        return None

    def assumed(self) -> Sides | None:
        """The grid of a table that nobody tells: the model's, else a square; None where it is
        neither.
        """
        if self.grid[0] * self.grid[1] == self.rows:
            return self.grid
        side = math.isqrt(self.rows)
        return (side, side) if side * side == self.rows else None


def resize(
    model: nn.Module, tensors: dict[str, Tensor], own: Mapping[str, Tensor], stored: Sides | None
) -> tuple[dict[str, tuple[tuple[int, ...], tuple[int, ...]]], dict[str, Sides]]:
    """Bring the tables of positions in `tensors` to the model's grid, in place: bilinearly in a
    pyramid, as timm does elsewhere.

    Args:
        model: the model.
        tensors: the file's tensors, under the model's names.
        own: the model's.
        stored: pixels (height, width) of the images that the file's tables were made for, where
            that is known.

    Returns:
        The shapes of the resized ones before and after, and the grids that were taken for granted.

    Raises:
        UsageError: a table of another grid than `stored` tells, or one that tells another grid than
            would be taken.
    """
    resized, assumed = {}, {}
    for name in [
        name for name in tensors if name.rsplit(".", 1)[-1] == "pos_embed" and name in own
    ]:
        old, new = tensors[name], own[name]
        places = _places(model, name, old, tensors, new)
        if places is None:
            continue
        before = None if stored is None else places.of_images(name, stored)
        if (
            before is None
            and (before := places.assumed()) is not None
            and not _confirmed(name, old, places, before)
        ):
            assumed[name] = before
        if before not in {None, places.grid}:
            assert before is not None
            tensors[name] = _resampled(old, before, places, pyramid=isinstance(model, Pyramid))
            resized[name] = (tuple(old.shape), tuple(tensors[name].shape))
    return resized, assumed


def _resampled(table: Tensor, before: Sides, places: Places, *, pyramid: bool) -> Tensor:
    """A table (1, prefix + R, C) on the model's grid."""
    if not pyramid:
        return resample_abs_pos_embed(
            table.float(), list(places.grid), list(before), num_prefix_tokens=places.prefix
        )
    first, rest = table.float().split([places.prefix, places.rows], dim=1)
    cells = F.interpolate(
        rest.transpose(1, 2).unflatten(2, before), places.grid, mode="bilinear", align_corners=False
    )
    return torch.cat([first, cells.flatten(2).transpose(1, 2)], dim=1)


def _confirmed(name: str, table: Tensor, places: Places, grid: Sides) -> bool:
    """Whether there is no doubt about the grid of a table: it has no other, or its own rows tell
    this one.

    Raises:
        UsageError: they tell another one.
    """
    cells = table[0, places.prefix :].detach().float()
    steps = {
        alternative: _step(cells, alternative)
        for alternative in grids(places.rows)
        if alternative != grid
    }
    if not steps:
        return True
    own_step, best = _step(cells, grid), min(steps, key=lambda alternative: steps[alternative])
    if steps[best] < min(ALIKE, NEARER * own_step):
        height, width = (
            round(side * pixels) for side, pixels in zip(best, places.reduction, strict=True)
        )
        raise UsageError(
            f"{name} would be read as {grid[0]} x {grid[1]} places, and its rows are alike as on "
            f"{best[0]} x {best[1]}: the file does not say "
            f"its grid. Pass image_size=({height}, {width}), or the size of the images that it "
            "was made for"
        )
    return own_step < ALIKE


def grids(rows: int) -> list[Sides]:
    """The grids of so many places whose sides are not far from each other.

    >>> grids(36)
    [(3, 12), (4, 9), (6, 6), (9, 4), (12, 3)]
    """
    divisions = [(side, rows // side) for side in range(1, rows + 1) if rows % side == 0]
    return [grid for grid in divisions if max(grid) <= LONGEST * min(grid)]


def _step(cells: Tensor, grid: Sides) -> float:
    """How unlike neighbours are on a grid, of cells (R, C): mean square, 1 for noise; the most of a
    step down and of the steps across at each column.
    """
    spread = 2 * cells.var(dim=0, unbiased=False).mean()
    if not spread > 0 or min(grid) < 2:
        return 1.0
    rows = cells.unflatten(0, grid)
    down, across = (rows.diff(dim=axis).square().mean(dim=-1) for axis in (0, 1))
    return float(torch.maximum(down.mean(), across.mean(dim=0).max()) / spread)


def _places(
    model: nn.Module, name: str, old: Tensor, tensors: Mapping[str, Tensor], new: Tensor
) -> Places | None:
    """What the rows of a table stand for; None where it is no such table, or other tokens come
    before the grid.
    """
    if (
        old.ndim != 3
        or new.ndim != 3
        or old.shape[-1] != new.shape[-1]
        or not old.is_floating_point()
    ):
        return None
    if isinstance(model, Pyramid):
        stage = cast("Stage", model.get_submodule(name.rsplit(".", 1)[0]))
        prefix, grid = stage.prefix, tuple(stage.pos_grid or ())
    else:
        grid = tuple(getattr(getattr(model, "patch_embed", None), "grid_size", None) or ())
        if len(grid) != 2 or (prefix := new.shape[1] - grid[0] * grid[1]) < 0:
            return None
        ahead = sum(tensors[token].shape[1] for token in TOKENS if token in tensors)
        if prefix and ahead != prefix:
            return None
    rows, size = old.shape[1] - prefix, _image_size(model)
    if rows < 1 or size is None or len(grid) != 2:
        return None
    return Places(prefix, rows, (grid[0], grid[1]), (size[0] / grid[0], size[1] / grid[1]))


def _image_size(model: nn.Module) -> Sides | None:
    """The pixels (height, width) that a model was built for."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or getattr(
        model, "img_size", None
    )
    return two_sides(
        size or ((getattr(model, "pretrained_cfg", None) or {}).get("input_size") or (0, 0, 0))[1:]
    )


def two_sides(size: object) -> Sides | None:
    """Height and width of what a configuration says; None where it says none."""
    sides = (
        (size, size)
        if isinstance(size, int)
        else tuple(size)
        if isinstance(size, list | tuple)
        else ()
    )
    return (int(sides[0]), int(sides[1])) if len(sides) == 2 and min(sides) > 0 else None


def checked_size(image_size: Size) -> Sides:
    """Height and width of what a caller says.

    Raises:
        UsageError: it says none.
    """
    if (size := two_sides(image_size)) is None:
        raise UsageError(
            f"image_size={image_size!r}: give pixels, as 224, or (height, width), as (96, 160)"
        )
    return size
