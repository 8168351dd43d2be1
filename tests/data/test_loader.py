"""What a batch holds depends on (seed, epoch, index) alone."""

import random
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.data.distributed_sampler import RepeatAugSampler

from softless.data import (
    ArraySamples,
    EpochOrder,
    TransformedSamples,
    build_transforms,
    eval_loader,
    open_splits,
    train_loader,
)
from softless.data.loader import mix
from softless.errors import DataError, UsageError
from softless.experiment.groups import AugmentSpec, DataSpec
from tests.data.making import class_folders, recipe

# RandAugment draws from numpy and Python, flips and erasing from torch
RICH = AugmentSpec(reprob=0.5)
AFFINE = AugmentSpec(affine=(10.0, 0.1, 0.1), auto_augment=None, color_jitter=None, hflip=0.5)
# Python 3.12 warns of any thread, even torch's idle ones
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture(scope="module")
def few():
    pixels = np.random.default_rng(0).integers(0, 256, (26, 20, 20, 3), dtype=np.uint8)
    return ArraySamples(pixels, np.arange(26) % 2, 3)


def pipeline(augment=RICH, size=16, *, train=True):
    return build_transforms(
        recipe(augment=augment, in_chans=3, image_size=size), (0.5,) * 3, (0.25,) * 3, train=train
    )


def epoch_of(loader, epoch):
    loader.set_epoch(epoch)
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@pytest.mark.parametrize("augment", [RICH, AFFINE], ids=["randaugment", "affine"])
def test_randomness_derives_from_seed_epoch_and_index(few, augment):
    def images(seed, epoch, order):
        data = TransformedSamples(few, pipeline(augment), seed)
        data.set_epoch(epoch)
        return {i: data[i][0] for i in order}

    base = images(0, 3, range(26))
    again = images(0, 3, reversed(range(26)))
    assert all(torch.equal(base[i], again[i]) for i in range(26))
    for other in (images(1, 3, range(26)), images(0, 4, range(26))):
        assert sum(torch.equal(base[i], other[i]) for i in range(26)) < 4
    twins = ArraySamples(few.images[:1].repeat(26, 0), few.targets, 3)
    data = TransformedSamples(twins, pipeline(augment))
    assert len({data[i][0].numpy().tobytes() for i in range(26)}) > 22


def test_copies_of_an_image_differ(few):
    data = TransformedSamples(few, pipeline(AFFINE))
    assert data[5][1] == data[5 + 26][1] == data[5 + 52][1]
    assert len({data[5 + 26 * copy][0].numpy().tobytes() for copy in range(3)}) == 3


def test_the_caller_s_generators_are_left_alone(few):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]  # noqa: NPY002

    before = state()
    list(train_loader(few, pipeline(), batch=8))
    list(eval_loader(few, pipeline(train=False), batch=8))
    assert state() == before

    broken = pipeline()
    broken.tail = (*broken.tail, lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        TransformedSamples(few, broken)[0]
    assert state() == before


def test_the_result_does_not_depend_on_the_caller_s_generators(few):
    data = TransformedSamples(few, pipeline())
    first = data[3][0]
    random.seed(9)
    np.random.seed(9)  # noqa: NPY002
    torch.manual_seed(9)
    assert torch.equal(data[3][0], first)


@forks
def test_workers_change_nothing(few):
    loaders = [
        train_loader(few, pipeline(), batch=8, seed=5, repeats=2, workers=w) for w in (0, 1, 2)
    ]
    for epoch in (0, 1, 1, 4):  # workers live on: they must hear of the new epoch
        (x0, y0), (x1, y1), (x2, y2) = (epoch_of(loader, epoch) for loader in loaders)
        assert torch.equal(x0, x1)
        assert torch.equal(x0, x2)
        assert y0.tolist() == y1.tolist() == y2.tolist()


@forks
def test_an_unreadable_image_in_a_worker_is_still_named(tmp_path):
    class_folders(tmp_path, {"a": 4, "b": 4})
    spec = DataSpec(
        source="folder", path=str(tmp_path), val_fraction=0.25, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    splits = open_splits(spec, seed=0)
    (tmp_path / splits.train.name(2)).write_bytes(b"")
    for workers in (0, 1):
        loader = eval_loader(splits.train, pipeline(train=False), batch=3, workers=workers)
        with pytest.raises(DataError, match=splits.train.name(2)):
            list(loader)
        if workers:
            # left to the garbage collector it waits five seconds
            loader._iterator._shutdown_workers()  # type: ignore[union-attr]


@pytest.mark.parametrize("augment", [RICH, AFFINE], ids=["randaugment", "affine"])
@pytest.mark.parametrize("train", [True, False])
def test_cached_equals_uncached(tmp_path, augment, train):
    class_folders(tmp_path, {"a": 5, "b": 5}, ending="jpg")
    spec = DataSpec(
        source="folder", path=str(tmp_path), val_fraction=0.2, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    samples = open_splits(spec, seed=0).train
    steps = pipeline(augment, train=train)
    kept, none, partly = (
        TransformedSamples(samples, steps, cache_bytes=n) for n in (2**20, 0, 5000)
    )
    for epoch in range(3):
        for data in (kept, none, partly):
            data.set_epoch(epoch)
        for i in range(len(samples)):
            assert torch.equal(kept[i][0], none[i][0])
            assert torch.equal(kept[i][0], partly[i][0])
    sizes = [len(data._cache) for data in (kept, none, partly)]
    assert sizes[0] == len(samples)
    assert sizes[1] == 0
    assert 0 < sizes[2] < len(samples)


def test_the_cache_spares_decoding(few, monkeypatch):
    data = TransformedSamples(few, pipeline())
    _ = data[0], data[1]
    monkeypatch.setattr(few, "image", None)
    assert data[1][0].shape == (3, 16, 16)


def test_an_epoch_holds_each_image_once():
    order = EpochOrder(26, 8, seed=1)
    batches = list(order)
    assert [len(b) for b in batches] == [8, 8, 8] == [8] * len(order)
    assert len({i for b in batches for i in b}) == 24
    assert sorted(i for b in EpochOrder(24, 8, seed=1) for i in b) == list(range(24))
    order.set_epoch(1)
    assert batches != list(order)
    order.set_epoch(0)
    assert batches == list(order)
    assert batches != list(EpochOrder(26, 8, seed=2))


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_global_batches(world, repeats):
    alone = list(EpochOrder(50, 8, 3, repeats=repeats))
    ranks = [list(EpochOrder(50, 8, 3, rank, world, repeats)) for rank in range(world)]
    for step, batch in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        assert {len(part) for part in parts} == {8 // world}
        assert sorted(i for part in parts for i in part) == sorted(batch)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("repeats", [2, 3])
def test_repeated_augmentation_is_deit_s_sampler(world, repeats):
    n, batch = 60, 12
    global_order = EpochOrder(n, batch, 7, repeats=repeats).positions()
    names = {image: place for place, image in enumerate(dict.fromkeys((global_order % n).tolist()))}
    for rank in range(world):
        ours = [names[p % n] for b in EpochOrder(n, batch, 7, rank, world, repeats) for p in b]
        theirs = RepeatAugSampler(range(n), world, rank, shuffle=False, num_repeats=repeats)
        assert ours == list(theirs)[: len(ours)]
        assert len(ours) == n // batch * batch // world
    copies = {(p % n, p // n) for p in global_order.tolist()}
    assert len(copies) == len(global_order)


def test_batches_that_cannot_be_formed():
    with pytest.raises(UsageError, match="batch_size=64 is more than the 26 training images"):
        EpochOrder(26, 64)
    with pytest.raises(UsageError, match="does not divide among 3 processes"):
        EpochOrder(26, 8, world=3)
    with pytest.raises(UsageError, match="must be at least 1"):
        EpochOrder(26, 0)


def test_workers_below_zero(few):
    with pytest.raises(UsageError, match=r"data\.workers=-1"):
        train_loader(few, pipeline(), batch=8, workers=-1)


def test_evaluation_sees_every_image_once_in_order(few):
    loader = eval_loader(few, pipeline(train=False), batch=8)
    _, targets = epoch_of(loader, 0)
    assert targets.tolist() == few.targets.tolist()
    assert list(loader.positions) == list(range(26))
    parts = [
        eval_loader(few, pipeline(train=False), batch=8, rank=rank, world=3) for rank in range(3)
    ]
    assert sorted(p for part in parts for p in part.positions) == list(range(26))
    for part in parts:
        assert epoch_of(part, 0)[1].tolist() == few.targets[list(part.positions)].tolist()


def test_seeds_of_neighbours_are_unrelated():
    keys = [mix(s, e, i) for s in range(4) for e in range(20) for i in range(50)]
    assert len(set(keys)) == len({k & 0xFFFFFFFF for k in keys}) == 4000
    bits = np.array([[key >> b & 1 for b in range(64)] for key in keys])
    assert np.abs(bits.mean(0) - 0.5).max() < 0.04
    assert mix(0, 1, 2) != mix(2, 1, 0) != mix(1, 0, 2)


def test_digits_are_fast():
    """The digits run shows 1,221 images in each of its epochs; a slow pipeline would outweigh its
    small models.
    """
    splits = open_splits(DataSpec(source="digits", in_chans=1), seed=0)
    r = recipe(augment=replace(AFFINE, hflip=0.0, reprob=0.0))
    loader = train_loader(
        splits.train, build_transforms(r, splits.mean, splits.std, train=True), batch=111
    )
    best = 1.0
    for epoch in range(3):
        start = time.process_time()
        images, _ = epoch_of(loader, epoch)
        best = min(best, (time.process_time() - start) / len(images))
    assert best < 400e-6  # microseconds of a core: 50 to 70 of them
