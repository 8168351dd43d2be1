"""More images to fit on: those that there are, changed a little, as a distillation changes them.

Within an image the tokens of a sum over tokens are nearly alike, so what counts is the number of
images. Copies of held-out images are left out: they would show the fit what it is chosen on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softless.data.transforms import Pipeline
from softless.experiment.groups import DataSpec
from softless.experiment.recipe import Recipe
from softless.recovery.chunks import Chunks
from softless.recovery.light import light
from softless.tasks.distillation.transforms import of_tensors


@dataclass(frozen=True)
class Views(Chunks):
    """Chunks (b, C, h, w): the images, then changed copies of those that are not held out."""

    chunks: Sequence[Tensor]
    # for each chunk of copies: the chunk that is copied, and which of its images
    copied: tuple[tuple[int, Tensor], ...]
    change: Pipeline
    seed: int

    def __len__(self) -> int:
        return len(self.chunks) + len(self.copied)

    def made(self, index: int) -> Tensor:
        number = index - len(self.chunks)
        if number < 0:
            return self.chunks[index]
        place, rows = self.copied[number]
        images = self.chunks[place][rows]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed << 20) + number)
            return torch.stack([self.change.finish(image) for image in images])


def with_views(
    chunks: Sequence[Tensor], held: Tensor, views: int, seed: int
) -> tuple[Sequence[Tensor], Tensor]:
    """Images and their changed copies.

    Args:
        chunks: (b, C, h, w).
        held: (n) which images are held out; they are not copied.
        views: of an image, itself among them.
        seed: of the changes; the same copy looks the same whenever it is asked for.

    Returns:
        The chunks, and which of all images are held out.
    """
    if views <= 1:
        return chunks, held
    first = chunks[0]
    channels, height, width = first.shape[1:]
    data = DataSpec(
        source="given",
        image_size=height if height == width else (height, width),
        in_chans=channels,
    )
    recipe = Recipe(name="views", summary="", data=data, augment=light(data))
    lowest = first.amin((0, 2, 3)).tolist()
    copied, start = [], 0
    for place, chunk in enumerate(chunks):
        rows = ~held[start : start + len(chunk)]
        start += len(chunk)
        copied += [(place, rows)] if bool(rows.any()) else []
    copies = [pair for _ in range(views - 1) for pair in copied]
    number = sum(int(rows.sum()) for _, rows in copies)
    change = of_tensors(recipe, lowest, train=True)
    all_held = torch.cat([held, torch.zeros(number, dtype=torch.bool)])
    return Views(chunks, tuple(copies), change, seed), all_held
