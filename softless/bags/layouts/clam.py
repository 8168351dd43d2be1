"""CLAM: `h5_files/SLIDE.h5` with `features` and `coords`, or `pt_files/SLIDE.pt`, both without
attributes; `patches/SLIDE.h5` beside them says how the slide was cut.

Read in `extract_features_fp.py`, `utils/file_utils.py` and `wsi_core/WholeSlideImage.py` at
53e2409. Others write files like these two into folders of the same names, so coordinates are known
to be level-0 pixels only where `patches/` is there, or where layout="clam" is given. A tile covers `patch_size` pixels of level `patch_level`, and so `patch_size` times the
whole part of `downsample` pixels of level 0. How far tiles stand apart is not stored.
"""

from softless.bags.files import Source, source_of
from softless.bags.layouts.layout import Described, Layout, beside, feature_key, number, pairs
from softless.bags.units import Frame

FOLDERS = frozenset({"h5_files", "pt_files"})
NO_PATCHES = (
    "no patches/{name}.h5 beside its features says how the slide was cut: unit='px0' and tile= "
    "in level-0 pixels say it"
)


def _patches(source: Source) -> Source | None:
    """The file that says how the slide was cut."""
    if source.path is None:
        return None
    name = f"{source.path.stem}.h5"
    near = beside(source, f"../patches/{name}", f"../../patches/{name}", f"patches/{name}")
    return None if near is None else source_of(near)


def _cut(source: Source) -> tuple[float | None, Source | None]:
    """Side of a tile in level-0 pixels, and the file that says it."""
    patches = _patches(source)
    attributes = {} if patches is None else patches.attributes_of.get("coords", {})
    size, downsample = number(attributes.get("patch_size")), attributes.get("downsample")
    if size is None or downsample is None:
        return None, None
    factor = downsample if isinstance(downsample, int | float) else downsample[0]
    custom = number(attributes.get("custom_downsample")) or 1.0
    return size * int(factor) * custom, patches


def _recognises(source: Source) -> bool:
    if source.path is None or any(source.attributes_of.values()):
        return False
    if not {"features", ""} & source.forms.keys():
        return False
    return source.path.parent.name in FOLDERS or (
        source.forms.keys() <= {"features", "coords"} and _cut(source)[0] is not None
    )


def _describe(source: Source, *, named: bool) -> Described:
    key = feature_key(source, "features", "")
    tile, patches = _cut(source)
    holder: Source | None = source if "coords" in source.forms else None
    if holder is None and source.path is not None:
        near = beside(source, f"../h5_files/{source.path.stem}.h5")
        holder = patches if near is None else source_of(near)
    remarks = (NO_PATCHES.format(name=source.path.stem),) if tile is None and source.path else ()
    return Described(
        key,
        None if holder is None else pairs(holder, "coords"),
        Frame(px0=1.0, tile=tile) if tile is not None or named else Frame(),
        remarks=remarks,
    )


LAYOUT = Layout(
    name="clam",
    tool="CLAM",
    keys="`h5_files/` with `features`, `coords`, or `pt_files/`; `patches/` beside them",
    unit="level-0 pixels; micrometres by `slide_mpp=`",
    recognises=_recognises,
    describe=_describe,
)
