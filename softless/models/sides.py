"""Height and width from what says a size."""

from collections.abc import Sequence


def sides(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of what `data.image_size` says: the side of a square, or both.

    >>> sides(224), sides((96, 160))
    ((224, 224), (96, 160))
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return int(height), int(width)
