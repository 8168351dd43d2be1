"""A bag that is written is one that TRIDENT's own reader, and ours, take back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softless.bags.bag import Bag
from softless.bags.write import digest_in, write_bag
from softless.errors import UsageError

h5py = pytest.importorskip("h5py")

GIVEN: dict[str, Any] = {
    "slide": "one",
    "encoder": "small",
    "mpp0": 0.2528,
    "mpp": 0.2528 * 443 / 224,
    "tile_px": 224,
    "tile_px0": 443,
    "overlap": 0,
    "level0_size": (3000, 4000),
    "bounds": (10, 20, 3000, 2000),
    "digest": "abc",
    "encoder_digest": "def",
}


def arrays(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    places = np.stack([np.arange(count) % 4, np.arange(count) // 4], axis=1) * 443
    return np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32), places


def test_keys_types_and_attributes_are_tridents(tmp_path: Path) -> None:
    features, places = arrays()
    write_bag(tmp_path / "one.h5", features, places, **GIVEN)
    with h5py.File(tmp_path / "one.h5") as file:
        assert set(file) == {"features", "coords"}
        assert np.array_equal(file["features"][:], features)
        assert np.array_equal(file["coords"][:], places)
        assert (file["features"].dtype, file["coords"].dtype) == (np.float32, np.int64)
        assert file["features"].maxshape == (None, 6)
        assert {"name", "savetodir", "encoder"} <= set(file["features"].attrs)
        told = dict(file["coords"].attrs)
    wanted = {
        "patch_size": 224,
        "patch_size_level0": 443,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "name": "one",
        "level0_width": 4000,
        "level0_height": 3000,
    }
    assert {name: told[name] for name in wanted} == wanted
    assert told["bounds"].tolist() == [10, 20, 3000, 2000]


def test_the_bag_opens_as_it_was(tmp_path: Path) -> None:
    features, places = arrays()
    write_bag(tmp_path / "one.h5", features, places, **GIVEN)
    bag = Bag.open(tmp_path / "one.h5")
    assert (bag.slide, bag.layout, bag.encoder, bag.tile_px0) == ("one", "trident", "small", 443)
    assert np.array_equal(bag.features[:], features)
    assert np.array_equal(np.asarray(bag.coords_px0), places)
    assert np.allclose(np.asarray(bag.coords_um), places * 0.2528, atol=1e-3)
    assert bag.tile_um == pytest.approx(443 * 0.2528)
    assert digest_in(tmp_path / "one.h5") == "abc"


def test_twice_the_same_bits_and_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, places = arrays()
    for name in ("one.h5", "two.h5"):
        write_bag(tmp_path / name, features, places, **GIVEN)
    before = (tmp_path / "one.h5").read_bytes()
    assert (tmp_path / "two.h5").read_bytes() == before

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(UsageError, match="No space left on device"):
        write_bag(tmp_path / "one.h5", features + 1, places, **GIVEN)
    assert (tmp_path / "one.h5").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.h5", "two.h5"]


def test_what_is_not_known_is_left_out_or_none_as_text(tmp_path: Path) -> None:
    features, places = arrays(0)
    unknown = {"mpp0": None, "mpp": None, "bounds": None, "digest": None, "encoder_digest": None}
    write_bag(tmp_path / "one.h5", features, places, **{**GIVEN, **unknown})
    with h5py.File(tmp_path / "one.h5") as file:
        assert file["features"].shape == (0, 6)
        assert file["coords"].shape == (0, 2)
        told = dict(file["coords"].attrs)
    assert told["level0_magnification"] == told["target_magnification"] == "None"
    assert not {"mpp", "mpp0", "bounds"} & set(told)
    assert digest_in(tmp_path / "one.h5") is None
    assert digest_in(tmp_path / "none.h5") is None
    (tmp_path / "bad.h5").write_bytes(b"no file of this kind")
    assert digest_in(tmp_path / "bad.h5") is None


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    features, places = arrays()
    with pytest.raises(
        UsageError, match=r"features have shape \(12, 6\) and coordinates \(11, 2\)"
    ):
        write_bag(tmp_path / "one.h5", features, places[1:], **GIVEN)
    with pytest.raises(UsageError, match="coordinates have fractions"):
        write_bag(tmp_path / "one.h5", features, places + 0.5, **GIVEN)
    assert not list(tmp_path.iterdir())
