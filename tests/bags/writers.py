"""The same tiles in the files of each tool: names, types, chunks and attributes as its own code
writes them (read at the commits that `softless/bags/layouts/` names).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import zarr

MPP0, SIDE_UM = 0.25, 128.0
SIDE = 512  # of a tile in level-0 pixels
SIZE = (20_000, 16_000)


@dataclass(frozen=True)
class Tiles:
    """Features (N, D) that float16 holds exactly, and corners (N, 2) in level-0 pixels."""

    features: np.ndarray
    px0: np.ndarray
    slide: str = "TCGA-3X-01.5e7a"

    @property
    def um(self) -> np.ndarray:
        return self.px0 * MPP0


def tiles(count: int = 60, width: int = 16, *, seed: int = 0, step: int = SIDE) -> Tiles:
    """Tiles in the order of rows; the tissue leaves out every seventh."""
    rng = np.random.default_rng(seed)
    features = (rng.integers(-512, 512, (count, width)) / 256).astype(np.float32)
    places = [(x, y) for y in range(3, 30) for x in range(4, 16) if (x + 12 * y) % 7]
    return Tiles(features, np.array(places[:count], dtype=np.int64).reshape(-1, 2) * step)


def save_h5(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    attributes: Mapping[str, Mapping[str, Any]],
    rows: int,
) -> Path:
    """Arrays that grow by rows, as TRIDENT (1 row a chunk) and CLAM (32) write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            stored = file.create_dataset(
                key,
                shape=array.shape,
                maxshape=(None, *array.shape[1:]),
                chunks=(rows, *(max(side, 1) for side in array.shape[1:])),
                dtype=array.dtype,
            )
            stored[:] = array
            for name, value in attributes.get(key, {}).items():
                stored.attrs[name] = "None" if value is None else value
    return path


def trident_cut(slide: Tiles, job: Path) -> dict[str, Any]:
    """The attributes of TRIDENT's coordinates."""
    return {
        "patch_size": 256,
        "patch_size_level0": 512,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "name": slide.slide,
        "savetodir": str(job),
        "level0_width": SIZE[0],
        "level0_height": SIZE[1],
    }


def trident(root: Path, slide: Tiles, encoder: str | None = "uni_v1", **changed: Any) -> Path:
    job = root / "20x_256px_0px_overlap"
    folder = job / f"features_{encoder or 'own'}"
    cut = {**trident_cut(slide, job), **changed}
    return save_h5(
        folder / f"{slide.slide}.h5",
        {"features": slide.features, "coords": slide.px0},
        {
            "features": {"name": slide.slide, "savetodir": str(folder), "encoder": encoder},
            "coords": {name: value for name, value in cut.items() if value is not ...},
        },
        1,
    )


def trident_pt(root: Path, slide: Tiles) -> Path:
    """TRIDENT saves the numpy array itself."""
    job = root / "20x_256px_0px_overlap"
    save_h5(
        job / "patches" / f"{slide.slide}_patches.h5",
        {"coords": slide.px0},
        {"coords": trident_cut(slide, job)},
        1,
    )
    path = job / "features_uni_v1" / f"{slide.slide}.pt"
    path.parent.mkdir(parents=True)
    torch.save(slide.features, path)
    return path


def clam(root: Path, slide: Tiles, *, patches: bool = True, **changed: Any) -> Path:
    cut = {
        "patch_size": 256,
        "patch_level": 1,
        "downsample": np.array([2.0, 2.0005]),
        "downsampled_level_dim": np.array([SIZE[0] // 2, SIZE[1] // 2]),
        "level_dim": np.array([SIZE[0] // 2, SIZE[1] // 2]),
        "name": slide.slide,
        "save_path": str(root / "patches"),
    }
    if patches:
        save_h5(
            root / "patches" / f"{slide.slide}.h5",
            {"coords": slide.px0},
            {"coords": {**cut, **changed}},
            32,
        )
    path = save_h5(
        root / "FEATURES" / "h5_files" / f"{slide.slide}.h5",
        {"features": slide.features, "coords": slide.px0.astype(np.int32)},
        {},
        32,
    )
    bare = root / "FEATURES" / "pt_files" / f"{slide.slide}.pt"
    bare.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(slide.features), bare)
    return path


def clam_pt(root: Path, slide: Tiles) -> Path:
    return clam(root, slide).parents[1] / "pt_files" / f"{slide.slide}.pt"


def stamp(root: Path, slide: Tiles, **changed: Any) -> Path:
    path = root / "uni-1a2b3c4d" / f"{slide.slide}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    attributes = {
        "stamp_version": "2.5.0",
        "extractor": "uni",
        "unit": "um",
        "tile_size_um": SIDE_UM,
        "tile_size_px": 224,
        "code_hash": "1a2b3c4d",
        "feat_type": "tile",
        **changed,
    }
    with h5py.File(path, "w") as file:
        file["coords"] = slide.um.astype(np.float32)
        file["feats"] = slide.features.astype(np.float16)
        for name, value in attributes.items():
            if value is not ...:
                file.attrs[name] = value
    return path


def stamp_20(root: Path, slide: Tiles) -> Path:
    absent = dict.fromkeys(("tile_size_um", "tile_size_px", "code_hash", "feat_type"), ...)
    return stamp(root, slide, stamp_version="2.0.0", tile_size=SIDE_UM, **absent)


def stamp_historic(root: Path, slide: Tiles) -> Path:
    """STAMP 1: 224 steps are 256 micrometres."""
    path = root / f"{slide.slide}.h5"
    with h5py.File(path, "w") as file:
        file["coords"] = (slide.px0 // SIDE * 224).astype(np.int64)
        file["feats"] = slide.features.astype(np.float16)
    return path


def kronos(root: Path, slide: Tiles) -> Path:
    path = root / f"{slide.slide}.h5"
    with h5py.File(path, "w") as file:
        file["patch_embeddings"] = slide.features
    return path


def slide2vec(root: Path, slide: Tiles, ending: str = "pt", **changed: Any) -> Path:
    coordinates = root / "tiles" / f"{slide.slide}.coordinates.npz"
    coordinates.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.arange(len(slide.px0), dtype=np.int32)
    np.savez_compressed(
        coordinates,
        tile_index=numbers,
        x=slide.px0[:, 0],
        y=slide.px0[:, 1],
        tissue_fractions=np.ones(len(numbers), dtype=np.float32),
    )
    cut: dict[str, dict[str, Any]] = {
        "provenance": {"sample_id": slide.slide, "spacing_at_level_0": None},
        "slide": {"dimensions": SIZE, "base_spacing_um": MPP0, "level_downsamples": [[1.0, 1.0]]},
        "tiling": {"tile_size_lv0": SIDE, "step_px_lv0": SIDE, "overlap": 0.0, "read_level": 0},
        "artifact": {"coordinate_space": "level_0", "tile_order": "row_major"},
    }
    cut = {name: {**table, **changed.get(name, {})} for name, table in cut.items()}
    meta = coordinates.with_name(f"{slide.slide}.coordinates.meta.json")
    meta.write_text(json.dumps(cut, indent=2))
    path = root / "tile_embeddings" / f"{slide.slide}.{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending == "pt":
        torch.save(torch.from_numpy(slide.features), path)
    else:
        np.savez_compressed(path, features=slide.features, tile_index=numbers)
    said = {
        "sample_id": slide.slide,
        "artifact_type": "tile_embeddings",
        "format": ending,
        "feature_dim": slide.features.shape[1],
        "num_tiles": len(numbers),
        "encoder_name": "uni",
        "encoder_level": "tile",
        "coordinates_npz_path": f"/elsewhere/{coordinates.name}",
        "tile_size_lv0": SIDE,
        "requested_spacing_um": 0.5,
        **changed.get("meta", {}),
    }
    path.with_name(f"{slide.slide}.meta.json").write_text(json.dumps(said))
    return path


def slide2vec_npz(root: Path, slide: Tiles) -> Path:
    return slide2vec(root, slide, "npz")


def gigapath(root: Path, slide: Tiles) -> Path:
    """Coordinates count pixels of 0.5 micrometres."""
    coords = (slide.um / 0.5).astype(np.int64)
    return save_h5(
        root / f"{slide.slide}.h5", {"features": slide.features, "coords": coords}, {}, 32
    )


def mopadi(root: Path, slide: Tiles) -> Path:
    path = root / f"{slide.slide}.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=slide.px0)
        file.create_dataset("feats", data=slide.features)
    return path


def mopadi_names(root: Path, slide: Tiles) -> Path:
    path = root / f"{slide.slide}.h5"
    names = [f"0_{number}_0.jpg" for number in range(len(slide.px0))]
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=slide.features)
        file.create_dataset("metadata", data=names, dtype=h5py.special_dtype(vlen=str))
    return path


def npz(root: Path, slide: Tiles, **stored: Any) -> Path:
    path = root / f"{slide.slide}.npz"
    np.savez(path, features=slide.features, coords=slide.um, **{"unit": "um", **stored})
    return path


def npy(root: Path, slide: Tiles) -> Path:
    path = root / f"{slide.slide}.npy"
    np.save(path, slide.features)
    np.save(root / "corners.npy", slide.px0)
    return path


def table_of_tensors(root: Path, slide: Tiles) -> Path:
    path = root / f"{slide.slide}.pt"
    held = {"features": torch.from_numpy(slide.features), "coords": torch.from_numpy(slide.px0)}
    torch.save(held, path)
    return path


def zarr_store(root: Path, slide: Tiles) -> Path:
    path = root / f"{slide.slide}.zarr"
    group = zarr.open_group(str(path), mode="w")
    for key, array in (("features", slide.features), ("coords", slide.px0)):
        stored = group.create_array(
            key, shape=array.shape, chunks=(16, array.shape[1]), dtype=array.dtype
        )
        stored[:] = array
    group.attrs.update({"unit": "px0", "mpp0": MPP0, "tile": SIDE})
    return path


# how each is opened: what its file does not say
LAYOUTS: dict[str, tuple[Callable[[Path, Tiles], Path], dict[str, Any]]] = {
    "trident": (trident, {"slide_mpp": MPP0}),
    "trident pt": (trident_pt, {"slide_mpp": MPP0}),
    "clam": (clam, {"slide_mpp": MPP0}),
    "clam pt": (clam_pt, {"slide_mpp": MPP0}),
    "stamp": (stamp, {"slide_mpp": MPP0}),
    "stamp 2.0": (stamp_20, {"slide_mpp": MPP0}),
    "slide2vec": (slide2vec, {}),
    "slide2vec npz": (slide2vec_npz, {}),
    "gigapath": (gigapath, {"layout": "gigapath", "slide_mpp": MPP0}),
    "mopadi": (mopadi, {"unit": "px0", "slide_mpp": MPP0, "tile": SIDE}),
    "npz": (npz, {"slide_mpp": MPP0, "tile": SIDE_UM}),
    "npy": (npy, {"coords": "corners.npy", "unit": "px0", "slide_mpp": MPP0, "tile": SIDE}),
    "pt": (table_of_tensors, {"unit": "px0", "slide_mpp": MPP0, "tile": SIDE}),
    "zarr": (zarr_store, {}),
}


def without(slide: Tiles, count: int = 0) -> Tiles:
    """The same slide with so few tiles."""
    return replace(slide, features=slide.features[:count], px0=slide.px0[:count])
