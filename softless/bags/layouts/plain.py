"""Files of one's own: npz, zarr, HDF5 or a table of tensors with `features` and, where they are
known, `coords`; or one array (N, D) in npy, pt or zarr.

`unit`, `tile`, `overlap`, `mpp0` and `encoder` may stand beside them, as numbers of the npz or as
attributes.
"""

from softless.bags.files import Source
from softless.bags.layouts.layout import Coordinates, Described, Layout, feature_key, number, pairs
from softless.bags.units import UNITS, Frame
from softless.errors import CoordinateError

FEATURES = ("features", "feats", "embeddings", "")
PAIRS = ("coords", "coordinates")


def _describe(source: Source, *, named: bool) -> Described:  # noqa: ARG001
    key = feature_key(source, *FEATURES)
    name = next((name for name in PAIRS if name in source.forms), None)
    coords = None
    if name is not None:
        coords = pairs(source, name)
    elif {"x", "y"} <= source.forms.keys():
        coords = Coordinates(source, ("x", "y"))
    encoder = source.attributes.get("encoder") or source.attributes_of.get(key, {}).get("encoder")
    return Described(key, coords, _frame(source), None if encoder is None else str(encoder))


def _frame(source: Source) -> Frame:
    unit = source.attributes.get("unit")
    if unit is not None and unit not in UNITS:
        raise CoordinateError(
            f"{source.called}: unit='{unit}' is stored, and a unit is {' or '.join(UNITS)}"
        )
    mpp0 = number(source.attributes.get("mpp0"))
    frame = Frame(
        tile=number(source.attributes.get("tile")),
        overlap=number(source.attributes.get("overlap")),
    )
    if unit == "um":
        return Frame(1.0, None if mpp0 is None else 1 / mpp0, frame.tile, frame.overlap)
    if unit == "px0":
        return Frame(mpp0, 1.0, frame.tile, frame.overlap)
    return frame


LAYOUT = Layout(
    name="plain",
    tool="npz, npy, zarr, pt, h5 of one's own",
    keys="`features` and `coords`, or one array; `unit`, `tile`, `overlap`, `mpp0`, `encoder`",
    unit="`unit` of the file, or `unit=`",
    recognises=lambda source: True,  # noqa: ARG005 - what no tool claims
    describe=_describe,
)
