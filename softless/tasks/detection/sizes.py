"""What the objects of a training split ask of a detector: the size of the images, the sides of the
anchors, the canvas of training.

The side of an object is sqrt(width x height). Images are enlarged, twice at most, until a tenth of
the objects alone has a side below `SMALL` pixels. They are reduced where they are larger than
`LONGEST`, or where nine objects of ten have sides above `LARGE`. Images of unlike sizes keep them.
The five anchors stand at equal ratios from the side that one object of twenty falls below to the
one that one of twenty exceeds, or farther apart where cells are wide. The canvas has the typical image, and the large objects whole.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from softless.tasks.detection.samples import BoxSamples

SMALL, LARGE = 16.0, 128.0  # pixels
# times as large: images of more different sizes keep them, as one shorter side for all would shrink
# some that the others do not need
ALIKE = 1.5
LONGEST = 1333  # of an image's longer side, as COCO's detectors have it
ENLARGED = 2.0
SPREAD = 4.0  # largest anchor over the smallest, at least
LEAST = 4.0  # pixels of an anchor's side
STEP = 32  # sides of a canvas are multiples
CANVAS = (128, 640)
RATIOS = (0.5, 1.0, 2.0)  # height over width of anchors, as `tasks.detection.model` makes them
LEVELS = 5
CELLS = 2  # of its map that an anchor is wide at least
STRIDES = {"retinanet": 8}  # pixels of a cell of the first map; 4 of other heads


@dataclass(frozen=True)
class BoxSizes:
    """What was measured, of n objects (side at the image's own size) and their images."""

    sides: np.ndarray  # (n,) sqrt(width x height), pixels
    shapes: np.ndarray  # (n, 2) width and height, pixels
    of_image: np.ndarray  # (n,) place of each object's image
    short: np.ndarray  # (images,) shorter side, pixels
    long: np.ndarray  # (images,) longer side

    @classmethod
    def of(cls, samples: "BoxSamples") -> "BoxSizes":
        """Of all objects that are no crowds."""
        objects = [
            (index, *annotation["bbox"][2:])
            for index, entry in enumerate(samples.entries)
            for annotation in entry.annotations
            if not annotation.get("iscrowd")
        ]
        listed = np.array(objects, dtype=np.float64).reshape(-1, 3)
        images = np.array(
            [[entry.height, entry.width] for entry in samples.entries], dtype=np.float64
        ).reshape(-1, 2)
        sides = np.sqrt(listed[:, 1] * listed[:, 2])
        return cls(sides, listed[:, 1:], listed[:, 0].astype(int), images.min(1), images.max(1))

    @property
    def factor(self) -> float:
        """By how much a typical image is enlarged (above 1) or reduced."""
        low = float(np.quantile(self.sides, 0.1))
        room = LONGEST / float(np.median(self.long))
        ideal = SMALL / low if low < SMALL else min(1.0, LARGE / low)
        return min(ideal, ENLARGED, room)

    def resize(self) -> int | None:
        """The shorter side in evaluation, or None where images stay as they are."""
        alike = self.short.max() <= ALIKE * self.short.min()
        if (not alike or 0.9 < self.factor < 1.1) and self.long.max() <= LONGEST:
            return None
        return max(STEP, round(self.factor * float(np.median(self.short))))

    def factors(self, resize: int | None, longest: int = LONGEST) -> np.ndarray:
        """(n,) by how much each object's image is enlarged in evaluation."""
        if resize is None:
            return np.ones(len(self.sides))
        return np.minimum(resize / self.short, longest / self.long)[self.of_image]

    def anchors(
        self, resize: int | None, longest: int = LONGEST, octave: float = 1.0, stride: int = 4
    ) -> tuple[float, ...]:
        """Five sides in pixels of the resized images.

        Each map's cells are twice as wide as those of the map before. An anchor narrower than two
        cells would miss most objects of its size, so it is as wide as that, or twice the one
        before it: no object falls between two of them.

        Args:
            resize: the shorter side in evaluation.
            longest: the longer one at most.
            octave: what the head enlarges each side by at most (RetinaNet: 2^(2/3)).
            stride: pixels of a cell of the first map.
        """
        resized_sides = self.sides * self.factors(resize, longest)
        low, high = np.quantile(resized_sides, [0.05, 0.95]) / [1, octave]
        middle = np.sqrt(low * high)
        low, high = min(low, middle / np.sqrt(SPREAD)), max(high, middle * np.sqrt(SPREAD))
        low = max(low, LEAST)
        sides = np.geomspace(low, max(high, SPREAD * low), LEVELS)
        cells = min(low, CELLS * stride) * 2.0 ** np.arange(LEVELS)
        return tuple(round(float(side), 1) for side in np.maximum(sides, cells))

    def canvas(self, resize: int | None, longest: int = LONGEST) -> tuple[int, int]:
        """Height and width of a square canvas, multiples of 32."""
        each = self.factors(resize, longest)
        typical = float(np.median(self.short)) * float(np.median(each))
        large = float(np.quantile(self.shapes.max(1) * each, 0.95))
        side = STEP * round(np.clip(max(typical, 1.25 * large), *CANVAS) / STEP)
        return int(side), int(side)

    def scale(self, resize: int | None, longest: int = LONGEST) -> tuple[float, float]:
        """The random scale on the canvas, around what evaluation does."""
        typical = float(np.median(self.factors(resize, longest)))
        return round(0.6 * typical, 3), round(1.6 * typical, 3)


def measured(samples: "BoxSamples", spec: Any, names: Collection[str]) -> dict[str, Any]:
    """The fields of `detection` that are to be measured, by name; those that are set are taken as
    they are. Without objects nothing is.

    Args:
        samples: the training split.
        spec: a recipe's `detection`.
        names: of the fields.
    """
    sizes = BoxSizes.of(samples)
    if not len(sizes.sides):
        return {}
    octave = 2 ** (2 / 3) if spec.head == "retinanet" else 1.0
    resize = sizes.resize() if "resize" in names else spec.resize
    every = {
        "resize": resize,
        "anchors": sizes.anchors(resize, spec.longest, octave, STRIDES.get(spec.head, 4)),
        "canvas": sizes.canvas(resize, spec.longest),
        "scale": sizes.scale(resize, spec.longest),
    }
    return {name: value for name, value in every.items() if name in names}


def covered(
    samples: "BoxSamples",
    anchors: Sequence[float],
    resize: int | None,
    longest: int = LONGEST,
    octaves: Sequence[float] = (1.0,),
) -> float:
    """The share of objects for which some anchor, centred on the object, has an IoU of 0.5 or more:
    the others can be learnt from by chance alone.
    """
    sizes = BoxSizes.of(samples)
    resized_shapes = sizes.shapes * sizes.factors(resize, longest)[:, None]
    sides = np.array([side * octave for side in anchors for octave in octaves])
    shapes = np.array([
        (side / np.sqrt(ratio), side * np.sqrt(ratio)) for side in sides for ratio in RATIOS
    ])
    common = np.minimum(resized_shapes[:, None], shapes[None]).prod(2)
    union = resized_shapes.prod(1)[:, None] + shapes.prod(1)[None] - common
    return float(((common / union).max(1) >= 0.5).mean())
