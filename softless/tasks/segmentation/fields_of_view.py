"""The masks beside new images that say where a model was never taught to answer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from softless.data.folder import listing
from softless.data.samples import FileSamples
from softless.errors import DataError
from softless.tasks.segmentation.values import is_label, read_values


def masks_beside(samples: FileSamples, name: str) -> list[Path | None]:
    """The field of view of each image, where there is one: NAME of any ending at the image's place
    below the folder `name`.

    That folder stands in the place of `images` in the path, as in training (`images/new/a.jpg`,
    `fov/new/a.png`), or beside the images' folder.

    Raises:
        DataError: two masks for an image.
    """
    root = samples.root.resolve()
    roots = [root.parent / name]
    if "images" in root.parts:
        position = len(root.parts) - 1 - root.parts[::-1].index("images")
        roots.insert(0, Path(*root.parts[:position], name, *root.parts[position + 1 :]))
    masks: dict[str, Path] = {}
    for folder in dict.fromkeys(roots[::-1]):  # the first of `roots` counts most
        masks |= _by_key(folder) if folder.is_dir() else {}
    return [masks.get(Path(file).with_suffix("").as_posix()) for file in samples.files]


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: where the field of view is.

    Raises:
        DataError: it cannot be read, or is of another size than its image (width, height).
    """
    mask: np.ndarray = read_values(path) > 0
    if mask.shape != size[::-1]:
        raise DataError(
            f"{path} is {mask.shape[1]} x {mask.shape[0]}, and its image is {size[0]} x {size[1]}: "
            "a field of view has its image's size; mend or remove it"
        )
    return mask


def _by_key(folder: Path) -> dict[str, Path]:
    by_key: dict[str, Path] = {}
    files: Sequence[str] = listing(folder, accepts=is_label).files
    for file in files:
        key = Path(file).with_suffix("").as_posix()
        if key in by_key:
            raise DataError(
                f"{folder / file} and {by_key[key].name} are both the field of view of {key}: "
                "keep one"
            )
        by_key[key] = folder / file
    return by_key
