"""From images to tensors: timm's transforms where the papers used them, the same geometry
everywhere else.
"""

import random
from dataclasses import replace

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torchvision.transforms import functional as tvf
from torchvision.transforms import transforms as tv

from softless.data import build_transforms
from softless.data.transforms import Normalised, RandomAffine, eval_transform, inverse_affine
from softless.errors import UsageError
from softless.experiment.groups import AugmentSpec, DataSpec
from softless.experiment.recipe import Recipe
from tests.data.making import PLAIN, noise, recipe

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = Recipe(
    "imagenet", "the papers'", data=DataSpec(source="folder", path="x", mean=MEAN, std=STD)
)


def test_the_default_recipe_is_deit_s_list():
    reference = timm.data.create_transform(
        224,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        mean=MEAN,
        std=STD,
    )
    ours = build_transforms(IMAGENET, MEAN, STD, train=True)
    assert [str(step) for step in ours.transforms] == [str(step) for step in reference.transforms]
    assert [type(step).__name__ for step in ours.transforms] == [
        "RandomResizedCropAndInterpolation",
        "RandomHorizontalFlip",
        "RandAugment",
        "MaybeToTensor",
        "Normalize",
        "RandomErasing",
    ]


def test_every_augmentation_field_arrives():
    augment = AugmentSpec(
        scale=(0.5, 0.9),
        ratio=(0.8, 1.2),
        hflip=0.3,
        vflip=0.2,
        color_jitter=0.1,
        auto_augment=None,
        interpolation="bilinear",
        reprob=0.6,
        remode="const",
        recount=3,
    )
    text = str(build_transforms(replace(IMAGENET, augment=augment), MEAN, STD, train=True))
    for part in (
        "scale=(0.5, 0.9)",
        "ratio=(0.8, 1.2)",
        "bilinear",
        "RandomHorizontalFlip(p=0.3)",
        "RandomVerticalFlip(p=0.2)",
        "brightness=(0.9, 1.1)",
        "RandomErasing(p=0.6, mode=const, count=(1, 3))",
    ):
        assert part in text
    plain = str(build_transforms(replace(IMAGENET, augment=PLAIN), MEAN, STD, train=True))
    assert not any(word in plain for word in ("Jitter", "Flip", "RandAugment", "Erasing"))


@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_evaluation_resizes_crops_and_normalises_as_timm(crop_pct):
    ours = eval_transform(64, crop_pct, "bicubic", MEAN, STD, 3)
    reference = timm.data.create_transform(
        64, is_training=False, interpolation="bicubic", mean=MEAN, std=STD, crop_pct=crop_pct
    )
    image = noise(100, 80)
    assert ours.fixed
    assert ours(image).shape == (3, 64, 64)
    assert torch.equal(ours(image), reference(image))


def test_a_fixed_pipeline_gives_tensors_of_its_own():
    ours = eval_transform(16, 1.0, "bilinear", MEAN, STD, 3)
    prepared = ours.prepare(noise())
    ours.finish(prepared).zero_()
    assert prepared.abs().sum() > 0


@pytest.mark.parametrize(
    ("angle", "scale", "x", "y"), [(0, 1, 0, 0), (17, 1, 0, 0), (0, 1.3, 0, 0), (-9, 0.8, 3, -2)]
)
def test_the_affine_map_is_torchvision_s(angle, scale, x, y):
    image = noise(33, 24, "L")
    matrix = inverse_affine(angle, scale, x, y, *image.size)
    ours = image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR
    )
    theirs = tvf.affine(image, angle, [x, y], scale, [0.0, 0.0], tv.InterpolationMode.BILINEAR)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_affine_draws_within_its_limits():
    affine = RandomAffine(10, 0.1, 0.2)
    dot = Image.new("L", (41, 41))
    dot.paste(255, (18, 18, 23, 23))
    places, sizes = [], []
    for _ in range(300):
        pixels = np.asarray(affine(dot), dtype=float)
        places.append([(pixels.sum(axis) * np.arange(41)).sum() / pixels.sum() for axis in (0, 1)])
        sizes.append(pixels.sum() / 255)
    moved = np.array(places) - 20
    assert np.abs(moved).max() < 4.1 + 0.3
    assert np.abs(moved).max(0).min() > 3.3
    assert 0.8**2 * 25 - 1.5 < min(sizes) < 0.75 * 25
    assert 1.3 * 25 < max(sizes) < 1.2**2 * 25 + 1.5


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_normalised_is_to_tensor_and_normalize(mode):
    mean, std = ((0.3,), (0.2,)) if mode == "L" else (MEAN, STD)
    image = noise(mode=mode)
    expected = tv.Normalize(mean, std)(tvf.to_tensor(image))
    torch.testing.assert_close(Normalised(mean, std)(image), expected, rtol=1e-6, atol=1e-6)


def test_an_affine_recipe_frames_as_evaluation_does():
    still = replace(PLAIN, affine=(0.0, 0.0, 0.0), interpolation="bilinear")
    for crop_pct in (1.0, 0.8):
        r = recipe(augment=still, in_chans=3, crop_pct=crop_pct)
        image = noise(50, 40)
        train, held = (build_transforms(r, MEAN, STD, train=train) for train in (True, False))
        torch.testing.assert_close(train(image), held(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("auto", [None, "rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original-mstd0.5"])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_through_all_of_it(channels, auto):
    r = replace(IMAGENET, data=replace(IMAGENET.data, in_chans=channels, image_size=32))
    r = replace(r, augment=replace(r.augment, auto_augment=auto, vflip=0.5, reprob=1.0))
    pipeline = build_transforms(r, MEAN[:channels], STD[:channels], train=True)
    for seed in range(60):
        random.seed(seed)
        out = pipeline(noise(mode="L" if channels == 1 else "RGB", seed=seed))
        assert out.shape == (channels, 32, 32)
        assert out.dtype == torch.float32
        assert out.isfinite().all()


@pytest.mark.parametrize("affine", [None, (10.0, 0.1, 0.1)])
def test_many_channels(affine):
    augment = replace(PLAIN, affine=affine, hflip=0.5, reprob=0.5)
    r = recipe(augment=augment, in_chans=5, image_size=16)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 5), dtype=np.uint8)
    mean, std = (0.5,) * 5, (0.25,) * 5
    train, held = (build_transforms(r, mean, std, train=train)(pixels) for train in (True, False))
    assert train.shape == held.shape == (5, 16, 16)
    assert not torch.equal(train, held)
    frame = build_transforms(r, mean, std, train=False)
    # channel 3 is treated as the one channel of a grey float image would be
    grey = tvf.center_crop(
        tvf.resize(
            torch.from_numpy(pixels[None, ..., 3] / 255).float(), [16], tv.InterpolationMode.BICUBIC
        ),
        [16],
    )
    torch.testing.assert_close(frame(pixels)[3], (grey[0] - 0.5) / 0.25)


def test_zero_bits_are_black_as_in_the_papers_runs():
    pipeline = build_transforms(IMAGENET, MEAN, STD, train=True)
    augment = next(step for step in pipeline.transforms if type(step).__name__ == "RandAugment")
    posterize = next(op for op in augment.ops if op.name == "PosterizeIncreasing")  # type: ignore[attr-defined]
    assert np.asarray(posterize.aug_fn(noise(), 0)).max() == 0
    assert np.asarray(posterize.aug_fn(noise(), 1)).max() == 128


def test_settings_that_cannot_be_used():
    many = recipe(in_chans=4, augment=AugmentSpec(auto_augment=None))
    with pytest.raises(UsageError, match=r"data\.in_chans is 4: set both to none"):
        build_transforms(many, (0.5,) * 4, (0.2,) * 4, train=True)
    with pytest.raises(UsageError, match=r"data\.crop_pct=1\.5"):
        build_transforms(recipe(crop_pct=1.5), (0.5,), (0.2,), train=False)
    mixed = recipe(augment=replace(PLAIN, affine=(1.0, 0.1, 0.1), auto_augment="augmix-m3"))
    with pytest.raises(UsageError, match=r"cannot be combined with augment\.affine"):
        build_transforms(mixed, (0.5,), (0.2,), train=True)


def test_augmentations_join_the_affine_map():
    augment = AugmentSpec(affine=(5.0, 0.1, 0.1), reprob=0.2, hflip=0.5)
    names = [
        type(s).__name__
        for s in build_transforms(recipe(augment=augment), (0.5,), (0.2,), train=True).transforms
    ]
    assert names == [
        "Resize",
        "CenterCrop",
        "RandomAffine",
        "RandomHorizontalFlip",
        "RandAugment",
        "Normalised",
        "RandomErasing",
    ]
    jitter = replace(augment, auto_augment=None)
    names = [
        type(s).__name__
        for s in build_transforms(recipe(augment=jitter), (0.5,), (0.2,), train=True).transforms
    ]
    assert "ColorJitter" in names
