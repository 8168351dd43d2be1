"""STAMP: `SLIDE.h5` with `feats` (float16) and `coords` in micrometres, and attributes of the file.

Read in `src/stamp/preprocessing/__init__.py` and `src/stamp/modeling/data.py` at c54ce06: since 2.1
the side of a tile is `tile_size_um`, in 2.0 it is `tile_size` with unit="um". Files that are older
have no attributes; their 224 steps are 256 micrometres, which STAMP tells from the spacing, and
which is read here only where layout="stamp-historic" is given. Kronos writes `patch_embeddings`
without coordinates.
"""

from softless.bags.files import Source
from softless.bags.lattice import Spacing
from softless.bags.layouts.layout import Described, Layout, feature_key, number, pairs
from softless.bags.units import Frame
from softless.errors import CoordinateError, DataError

STEP, SIDE_UM = 224.0, 256.0  # of historic files
OWN = frozenset({"stamp_version", "tile_size_um", "code_hash"})


def _recognises(source: Source) -> bool:
    if "patch_embeddings" in source.forms:
        return True
    return "feats" in source.forms and bool(
        OWN & source.attributes.keys()
        or {"tile_size", "unit", "extractor", "encoder"} & source.attributes.keys()
    )


def _describe(source: Source, *, named: bool) -> Described:  # noqa: ARG001
    if (kind := source.attributes.get("feat_type", "tile")) != "tile":
        raise DataError(
            f"{source.called} holds one vector of a whole {kind}, and a bag holds a row for each "
            "tile: give the files that `stamp preprocess` wrote"
        )
    key = feature_key(source, "feats", "patch_embeddings")
    encoder = source.attributes.get("extractor") or source.attributes.get("encoder")
    coords = pairs(source, "coords") if "coords" in source.forms else None
    return Described(
        key,
        coords,
        _frame(source),
        None if encoder is None else str(encoder),
        remarks=() if coords else ("it has no coordinates",),
    )


def _frame(source: Source) -> Frame:
    unit, side = source.attributes.get("unit"), number(source.attributes.get("tile_size_um"))
    if unit not in {None, "um"}:
        raise CoordinateError(
            f"{source.called}: unit='{unit}' is stored, and STAMP's coordinates are in 'um': "
            "write the file again"
        )
    if side is None and unit == "um":
        side = number(source.attributes.get("tile_size"))
    return Frame() if side is None and unit is None else Frame(um=1.0, tile=side)


def _historic(source: Source, *, named: bool) -> Described:  # noqa: ARG001
    """Files without attributes, read as STAMP 1 meant them."""
    key = feature_key(source, "feats", "features")
    coords = pairs(source, "coords")
    if coords is not None:
        spacing = Spacing.of(coords.read(0, min(coords.count, 4096)))
        if spacing.contradicts(STEP) is not None:
            raise CoordinateError(
                f"{source.called}: neighbouring tiles stand {spacing.step:g} apart, and those of "
                f"historic STAMP files {STEP:g}: give unit= and tile= in the place of layout="
            )
    return Described(key, coords, Frame(um=SIDE_UM / STEP, tile=STEP))


LAYOUT = Layout(
    name="stamp",
    tool="STAMP 2",
    keys="`feats` or `patch_embeddings`, `coords`; `unit`, `tile_size_um`, `extractor` of the file",
    unit="micrometres; level-0 pixels by `slide_mpp=`",
    recognises=_recognises,
    describe=_describe,
)
HISTORIC = Layout(
    name="stamp-historic",
    tool="STAMP 1",
    keys="`feats`, `coords`, no attributes",
    unit='224 steps are 256 micrometres; only where `layout="stamp-historic"` is given',
    recognises=lambda source: False,  # noqa: ARG005 - MoPaDi's files look the same
    describe=_historic,
)
