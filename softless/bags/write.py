"""A bag of features written as TRIDENT writes one, whole or not at all, with what ours knows more.

HDF5 with `features` (N,D) and `coords` (N,2) int64: x and y of each tile's top left corner in
pixels of level 0. Sizes and resolutions are attributes of `coords`, the encoder's name of
`features` (mahmoodlab/TRIDENT, `save_h5` and `coords_to_h5`). What nobody knows of these is the
text "None", as there. Beyond them, where they are known: `mpp`, `mpp0`, `bounds`, digests.
"""

# N tiles, D width

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softless.errors import UsageError, need
from softless.models.durable import write_whole

NOTHING = "None"  # as TRIDENT writes what is not known
BLOCK = 2**20  # bytes of features that are read at once
TENFOLD = 10.0  # micrometres per pixel of a lens that enlarges once, as TRIDENT counts


def write_bag(
    path: Path,
    features: NDArray[Any],
    coords_px0: NDArray[Any],
    *,
    slide: str,
    encoder: str,
    mpp0: float | None,
    mpp: float | None,
    tile_px: int,
    tile_px0: int,
    overlap: int,
    level0_size: tuple[int, int],
    bounds: tuple[int, int, int, int] | None = None,
    digest: str | None = None,
    encoder_digest: str | None = None,
) -> None:
    """Write the features of a slide's tiles.

    Args:
        path: Of the file; the folder must be there.
        features: (N,D), one row a tile; (0,D) of a slide without any.
        coords_px0: (N,2) whole numbers, x and y of each tile's top left corner in pixels of
            level 0.
        slide: Its name.
        encoder: The name of what made the features.
        mpp0: Micrometres per pixel of level 0, where that is known.
        mpp: Micrometres per pixel of what the encoder saw.
        tile_px: Side of a tile in pixels of what the encoder saw.
        tile_px0: Side of a tile in pixels of level 0.
        overlap: Of neighbours, in pixels of what the encoder saw.
        level0_size: Height and width of level 0.
        bounds: x, y, width and height of what was scanned, where the slide says it.
        digest: Of all that decides the features: encoder, settings, slide.
        encoder_digest: Of the encoder alone.

    Raises:
        UsageError: features and coordinates do not fit, or coordinates are no whole numbers.
        MissingExtra: h5py is not installed.
        StorageError: the disk does not take it; what was there before stays.
    """
    need("h5py")
    values, places = np.asarray(features), np.asarray(coords_px0)
    if values.ndim != 2 or places.shape != (len(values), 2):
        raise UsageError(
            f"features have shape {values.shape} and coordinates {places.shape}: give (N, D) and "
            "(N, 2)"
        )
    corners = places.astype(np.int64)
    if not np.array_equal(corners, places):
        raise UsageError("coordinates have fractions, and TRIDENT's layout holds whole pixels")
    height, width = level0_size
    of_coords = {
        "patch_size": tile_px,
        "patch_size_level0": tile_px0,
        "level0_magnification": _magnification(mpp0),
        "target_magnification": _magnification(mpp),
        "overlap": overlap,
        "name": slide,
        "savetodir": path.parent.name,
        "level0_width": width,
        "level0_height": height,
        **_known(mpp=mpp, mpp0=mpp0, bounds=bounds),
    }
    of_features = {
        "name": slide,
        "savetodir": path.parent.name,
        "encoder": encoder,
        **_known(digest=digest, encoder_digest=encoder_digest),
    }
    write_whole(path, lambda beside: _write(beside, values, corners, of_features, of_coords))


def digest_in(path: Path) -> str | None:
    """The digest of a file that `write_bag` wrote; None where it is missing, damaged or has none.

    Raises:
        MissingExtra: h5py is not installed.
    """
    need("h5py")
    import h5py

    try:
        with h5py.File(path, "r") as file:
            digest = file["features"].attrs.get("digest")
            return None if digest is None or "coords" not in file else str(digest)
    except (OSError, KeyError):
        return None


def _known(**attributes: Any) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _magnification(mpp: float | None) -> int | float | None:
    """How often a lens enlarges that shows so many micrometres a pixel: a whole number where it is
    near one, since TRIDENT divides them.
    """
    if mpp is None:
        return None
    exact = TENFOLD / mpp
    return max(1, round(exact)) if exact > 1 else exact


def _write(
    path: Path,
    features: NDArray[Any],
    coords: NDArray[np.int64],
    of_features: Mapping[str, Any],
    of_coords: Mapping[str, Any],
) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, values, attributes in (
            ("features", features, of_features),
            ("coords", coords, of_coords),
        ):
            rows = max(1, min(len(values), BLOCK // max(1, values.itemsize * values.shape[1])))
            table = file.create_dataset(
                name,
                data=values,
                maxshape=(None, values.shape[1]),
                chunks=(rows, max(1, values.shape[1])),
            )
            for key, value in attributes.items():
                table.attrs[key] = NOTHING if value is None else value
