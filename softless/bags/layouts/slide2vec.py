"""slide2vec: `tile_embeddings/SLIDE.pt` or `.npz` with `SLIDE.meta.json` beside it, and
`tiles/SLIDE.coordinates.npz` with `SLIDE.coordinates.meta.json`, which hs2p writes.

Read in `slide2vec/artifacts.py` at 7cfa6bf and `hs2p/tiling/io.py`. x and y are level-0 pixels,
`tile_size_lv0` and `step_px_lv0` too; `base_spacing_um` are the micrometres of such a pixel.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from softless.bags.files import Source, source_of
from softless.bags.layouts.layout import Coordinates, Described, Layout, beside, feature_key, number
from softless.bags.units import Frame
from softless.errors import DataError
from softless.models.records import read_json


def _meta(source: Source) -> dict[str, Any]:
    path = source.path and beside(source, f"{source.path.stem}.meta.json")
    return read_json(path) if path else {}


def _recognises(source: Source) -> bool:
    if source.path is None or source.path.suffix.lower() not in {".pt", ".npz"}:
        return False
    return "artifact_type" in _meta(source)


def _describe(source: Source, *, named: bool) -> Described:  # noqa: ARG001
    meta = _meta(source)
    if (kind := meta.get("artifact_type", "tile_embeddings")) != "tile_embeddings":
        raise DataError(
            f"{source.called} holds {str(kind).replace('_', ' ')}, and a bag holds a row for each "
            "tile: give the files in tile_embeddings/"
        )
    key = feature_key(source, "features", "")
    path = _coordinates(source, meta)
    remarks: tuple[str, ...] = ()
    coords = None
    frame = Frame(px0=1.0, tile=number(meta.get("tile_size_lv0")))
    if path is None:
        remarks = ("no tiles/…coordinates.npz is beside its features, so it has no coordinates",)
    else:
        coords = Coordinates(source_of(path), ("x", "y"))
        frame = _frame(path, frame)
        _check_order(source, coords)
    encoder = meta.get("encoder_name")
    return Described(
        key,
        coords,
        frame,
        None if encoder is None else str(encoder),
        meta.get("sample_id"),
        remarks,
    )


def _coordinates(source: Source, meta: Mapping[str, Any]) -> Path | None:
    """The file of coordinates: beside the features as they lie now, or where they once were."""
    assert source.path is not None
    name = f"{source.path.stem}.coordinates.npz"
    inner = source.path.parent.name  # tiles of one annotation lie a folder deeper
    near = beside(
        source,
        f"../tiles/{name}",
        f"../../tiles/{inner}/{name}",
        f"../../tiles/{name}",
        f"../../tile_embeddings/../tiles/{inner}/{name}",
    )
    noted = Path(str(meta.get("coordinates_npz_path") or ""))
    return near or (noted if noted.is_file() else None)


def _frame(path: Path, frame: Frame) -> Frame:
    """The unit by hs2p's file beside the coordinates."""
    meta_path = path.with_name(path.name.removesuffix(".npz") + ".meta.json")
    if not meta_path.is_file():
        return frame
    content = read_json(meta_path)
    tiling, slide = content.get("tiling") or {}, content.get("slide") or {}
    tile = number(tiling.get("tile_size_lv0")) or frame.tile
    step, mpp0 = number(tiling.get("step_px_lv0")), number(slide.get("base_spacing_um"))
    overlap = None if step is None or tile is None else tile - step
    return Frame(um=mpp0 or None, px0=1.0, tile=tile, overlap=overlap)


def _check_order(source: Source, coords: Coordinates) -> None:
    """Rows of features and of coordinates are the same tiles."""
    if "tile_index" not in source.forms or "tile_index" not in coords.source.forms:
        return
    if not np.array_equal(source.read("tile_index"), coords.source.read("tile_index")):
        raise DataError(
            f"{source.called}: its tile_index is not that of {coords.source.called}: the rows are "
            "other tiles; write both again"
        )


LAYOUT = Layout(
    name="slide2vec",
    tool="slide2vec",
    keys="`tile_embeddings/` (`features` in npz, a tensor in pt) with `.meta.json`; `tiles/`",
    unit="level-0 pixels; micrometres by `base_spacing_um` of `tiles/`, or `slide_mpp=`",
    recognises=_recognises,
    describe=_describe,
)
