"""TRIDENT: `features_ENCODER/SLIDE.h5` with `features` and `coords`, whose attributes say how the
slide was cut; or `SLIDE.pt`, with `patches/SLIDE_patches.h5` beside the folder.

Read in `trident/IO.py` and `trident/wsi_objects/WSI.py` at a91fa84. `patch_size` and `overlap` are
pixels of the target magnification, coordinates and `patch_size_level0` pixels of level 0. Nothing
says how large a pixel is, unless `softless tiles` wrote the file (`mpp0`).
"""

from collections.abc import Mapping
from typing import Any

from softless.bags.files import Source, source_of
from softless.bags.layouts.layout import Described, Layout, beside, feature_key, number, pairs
from softless.bags.units import Frame
from softless.errors import CoordinateError

FOLDER = "features_"
MARK = "patch_size_level0"


def _patches(source: Source) -> Source | None:
    """The file of coordinates that belongs to bare features."""
    if source.path is None or not source.path.parent.name.startswith(FOLDER):
        return None
    path = beside(source, f"../patches/{source.path.stem}_patches.h5")
    return None if path is None else source_of(path)


def _recognises(source: Source) -> bool:
    if "features" in source.forms:
        return MARK in source.attributes_of.get("coords", {})
    return "" in source.forms and _patches(source) is not None


def _describe(source: Source, *, named: bool) -> Described:  # noqa: ARG001
    key = feature_key(source, "features", "")
    holder = source if "coords" in source.forms else _patches(source)
    attributes = {} if holder is None else holder.attributes_of.get("coords", {})
    encoder = source.attributes_of.get(key, {}).get("encoder")
    if encoder is None and source.path is not None and source.path.parent.name.startswith(FOLDER):
        encoder = source.path.parent.name.removeprefix(FOLDER)
    name = attributes.get("name")
    return Described(
        key,
        None if holder is None else pairs(holder, "coords"),
        _frame(attributes, source.called),
        None if encoder is None else str(encoder),
        None if name is None else str(name),
    )


def _frame(attributes: Mapping[str, Any], called: str) -> Frame:
    """The unit by the attributes of `coords`.

    Raises:
        CoordinateError: sizes and magnifications contradict each other.
    """
    source_mag = number(attributes.get("level0_magnification"))
    target_mag = number(attributes.get("target_magnification"))
    size, side0 = number(attributes.get("patch_size")), number(attributes.get(MARK))
    mpp0, mpp = number(attributes.get("mpp0")), number(attributes.get("mpp"))
    ratio = None if not (source_mag and target_mag) else source_mag / target_mag
    if mpp0 and mpp:
        ratio = mpp / mpp0
    if size and side0 and ratio and abs(side0 - size * ratio) > max(1.0, 0.01 * side0):
        raise CoordinateError(
            f"{called}: patch_size_level0 is {side0:g}, and patch_size {size:g} at the "
            f"magnifications that are stored is {size * ratio:g}: one of the attributes is wrong"
        )
    overlap = number(attributes.get("overlap")) or 0.0
    scale = side0 / size if side0 and size else ratio or 1.0
    extent = tuple(number(attributes.get(f"level0_{side}")) for side in ("width", "height"))
    return Frame(
        um=mpp0,
        px0=1.0,
        tile=side0,
        overlap=float(round(overlap * scale)),
        magnification=None if mpp0 else source_mag,
        size=None if None in extent else extent,  # type: ignore[arg-type]
    )


LAYOUT = Layout(
    name="trident",
    tool="TRIDENT",
    keys="`features`, `coords` with the attributes `patch_size_level0`, `level0_magnification`, …",
    unit="level-0 pixels; micrometres by `slide_mpp=`, or where `mpp0` is stored",
    recognises=_recognises,
    describe=_describe,
)
