"""MoPaDi: `feats` and `coords` of whole numbers, or `features` and `metadata` (the names of image
files); no attributes.

Read in `src/mopadi/data_prep/utils.py` and `src/mopadi/utils/extract_features.py` at a48792e. The
unit of the coordinates is stored nowhere. STAMP's historic files look the same.
"""

from softless.bags.files import Source
from softless.bags.layouts.layout import Described, Layout, feature_key, pairs

NO_COORDS = "it names its tiles' image files and has no coordinates"


def _recognises(source: Source) -> bool:
    if source.attributes or any(source.attributes_of.values()):
        return False
    return "feats" in source.forms or {"features", "metadata"} <= source.forms.keys()


def _describe(source: Source, *, named: bool) -> Described:  # noqa: ARG001
    key = feature_key(source, "feats", "features")
    coords = pairs(source, "coords")
    return Described(key, coords, remarks=() if coords else (NO_COORDS,))


LAYOUT = Layout(
    name="mopadi",
    tool="MoPaDi",
    keys="`feats`, `coords`, or `features`, `metadata`; no attributes",
    unit="not stored: `unit=` and, for pixels, `slide_mpp=`",
    recognises=_recognises,
    describe=_describe,
)
