"""From a bag to tensors: all its tiles, or in training so many that are drawn anew each time."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from softless.data.transforms import Pipeline


class Tiles(NamedTuple):
    """The tiles of one bag."""

    features: Tensor  # (N, D) as stored
    coords: Tensor  # (N, 2) float64 micrometres; (N, 0) where the model looks at none

    @property
    def nbytes(self) -> int:
        """Of both tensors."""
        return self.features.nbytes + self.coords.nbytes


class Read:
    """(bag, target) to (`Tiles`, target).

    Args:
        positions: whether coordinates are read.
    """

    def __init__(self, *, positions: bool) -> None:
        self.positions = positions

    def __call__(self, sample: tuple[Any, Any]) -> tuple[Tiles, Any]:
        bag, target = sample
        features = torch.from_numpy(np.ascontiguousarray(bag.features[0 : len(bag)]))
        coords = bag.coords_um if self.positions else None
        placed = (
            torch.zeros(len(features), 0, dtype=torch.float64)
            if coords is None
            else torch.from_numpy(np.array(coords, dtype=np.float64))
        )
        return Tiles(features, placed), target

    def __repr__(self) -> str:
        return f"Read(positions={self.positions})"


class DrawTiles:
    """At most so many tiles of a bag, and such a share of them, drawn without replacement by
    torch's generator, in their order.
    """

    def __init__(self, count: int | None, share: float = 1.0) -> None:
        self.count, self.share = count, share

    def __call__(self, sample: tuple[Tiles, Any]) -> tuple[Tiles, Any]:
        tiles, target = sample
        total = len(tiles.features)
        count = max(round(self.share * total), 1)
        count = count if self.count is None else min(count, self.count)
        if count >= total:
            return sample
        chosen = torch.randperm(total)[:count].sort().values
        return Tiles(tiles.features[chosen], tiles.coords[chosen]), target

    def __repr__(self) -> str:
        return f"DrawTiles({self.count}, {self.share})"


class BagPipeline(Pipeline):
    """Takes and gives pairs (bag, target); what is kept in memory is not written into."""

    joint = True

    def finish(self, prepared: Any, *, cached: bool = True) -> Any:  # noqa: ARG002
        """The rest: the tail, which makes new tensors."""
        if self.fixed:
            return prepared
        for step in self.tail:
            prepared = step(prepared)
        return prepared


def bag_pipeline(*, positions: bool, tiles: int | None = None, keep: float = 1.0) -> BagPipeline:
    """From a bag to its tiles.

    Args:
        positions: whether coordinates are read.
        tiles: how many are drawn at most; None takes all.
        keep: which share of them.
    """
    read = Read(positions=positions)
    if tiles is None and keep == 1:
        return BagPipeline([read], [], fixed=True)
    return BagPipeline([read], [DrawTiles(tiles, keep)], fixed=False)


def padded(bags: list[Tiles]) -> tuple[Tensor, Tensor, Tensor]:
    """Bags of several lengths as one batch.

    Args:
        bags: B of them.

    Returns:
        Features (B, N, D) float32 with zeros behind a bag's end, coordinates (B, N, 2) or
        (B, N, 0), and a mask (B, N), True where there is a tile.
    """
    longest = max(len(bag.features) for bag in bags)
    features = torch.zeros(len(bags), longest, bags[0].features.shape[1])
    coords = torch.zeros(len(bags), longest, bags[0].coords.shape[1], dtype=torch.float64)
    mask = torch.zeros(len(bags), longest, dtype=torch.bool)
    for row, bag in enumerate(bags):
        count = len(bag.features)
        features[row, :count] = bag.features
        coords[row, :count] = bag.coords
        mask[row, :count] = True
    return features, coords, mask
