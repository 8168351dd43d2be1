"""Bags that are streamed: the answer of the whole, in memory bounded by the chunk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import softless
from softless.errors import DataError, PrecisionError, UsageError
from softless.models.bag import CONTROLS
from softless.slides import bags
from tests.models.bags import bag_model, coordinates, features, operators, relative
from tests.models.lively import zeroed

TILES = 150
NAMES = [f"{op}_bag_tiny" for op in operators() if op != "softmax"] + list(CONTROLS)
CASES = [(name, pool) for name in NAMES for pool in ("gated", "cls", "mean")] + [
    (name, "") for name in CONTROLS
]


def bag(tiles: int = TILES, seed: int = 0) -> Any:
    return softless.Bag.of(features(tiles, seed=seed)[0], coordinates(tiles)[0], tile_um=128)


def model_of(name: str, pool: str) -> Any:
    return bag_model(name, **({"pool": pool, "position": "fourier"} if pool else {}))


@pytest.mark.parametrize("in_file", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("chunk", [7, 64, 1000])
@pytest.mark.parametrize(("name", "pool"), [c for c in CASES if c[0] not in CONTROLS or not c[1]])
def test_a_streamed_bag_has_the_answer_of_the_whole(
    name: str, pool: str, chunk: int, in_file: bool, monkeypatch: Any, tmp_path: Path
) -> None:
    if in_file:
        monkeypatch.setattr(bags, "HELD", 0)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = model_of(name, pool)
    x, where = features(TILES), coordinates(TILES)
    result = softless.stream(model, bag(), chunk=chunk, quiet=True)
    with torch.no_grad():
        assert relative(result.logits, model(x, where)) < 1e-6
        assert relative(result.features, model.forward_features(x, where)) < 1e-6
        if result.scores is not None:
            assert relative(result.scores[None], model.tile_scores(x, where)) < 1e-6
    assert (result.scores is None) == (pool in {"cls", "mean"} or name in {"mean_bag", "max_bag"})
    assert result.tiles == TILES
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [n for n in NAMES if n not in CONTROLS])
def test_without_its_attention_a_streamed_bag_has_another_answer(name: str) -> None:
    model = model_of(name, "gated")
    before = softless.stream(model, bag(), chunk=64, quiet=True).logits
    after = softless.stream(zeroed(model), bag(), chunk=64, quiet=True).logits
    assert relative(after, before) > 1e-2


def test_features_of_half_precision_are_read_chunk_by_chunk(tmp_path: Path) -> None:
    model, halves = model_of("seqnorm_bag_tiny", "gated"), features(TILES)[0].half().numpy()
    path = tmp_path / "bag.npy"  # which is mapped, and not writable
    np.save(path, halves)
    model.position = None
    result = softless.stream(model, softless.Bag.open(path), chunk=32, store=tmp_path / "s")
    with torch.no_grad():
        assert relative(result.logits, model(torch.from_numpy(halves)[None])) < 1e-6


class Watched:
    """Rows that note what is read at once."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.shape, self.most, self.count = rows, rows.shape, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Any) -> Any:
        read = self.rows[which]
        self.most, self.count = max(self.most, len(read)), self.count + len(read)
        return read


def test_each_tile_is_read_once_and_no_more_than_a_chunk_at_a_time() -> None:
    one = bag()
    rows = Watched(one.features)
    object.__setattr__(one, "features", rows)
    softless.stream(model_of("nystrom_bag_tiny", "gated"), one, chunk=32, quiet=True)
    assert rows.most <= 32
    assert rows.count == TILES


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m: softless.stream(m, bag(), level=1), UsageError, "level= is for images"),
        (lambda m: softless.stream(m, bag(), chunk=0), UsageError, "at least one"),
        (lambda m: softless.stream(m, torch.zeros(3, 32, 32)), UsageError, "Bag.open"),
        (lambda m: softless.stream(m.half(), bag()), PrecisionError, "float16"),
        (
            lambda m: softless.stream(m, softless.Bag.of(torch.ones(3, 5))),
            DataError,
            "made for 24",
        ),
        (
            lambda m: softless.stream(m, softless.Bag.of(features(9)[0])),
            DataError,
            "no coordinates",
        ),
        (
            lambda _: softless.stream(model_of("softmax_bag_tiny", "gated"), bag()),
            UsageError,
            "cannot be streamed: each query",
        ),
        (
            lambda _: softless.stream(
                softless.create_model("sima_deit_tiny_patch16_224", depth=1), bag()
            ),
            UsageError,
            "model of bags",
        ),
    ],
)
def test_what_cannot_be_streamed_is_said(call: Any, error: type, says: str) -> None:
    model = model_of("sima_bag_tiny", "gated")
    with pytest.raises(error, match=says):
        call(model)
