"""Sizes that a detector's recipe takes from the training boxes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softless.errors import UsageError
from softless.recipes import get_recipe
from softless.tasks.detection.samples import AnnotatedImage, BoxSamples
from softless.tasks.detection.settings import MEASURABLE
from softless.tasks.detection.sizes import BoxSizes, covered, measured
from softless.tasks.table import open_task


def samples(
    sides: list[float], *, image: tuple[int, int] = (400, 600), stretch: float = 1.0
) -> BoxSamples:
    """One object of each side on each image of height x width pixels, and a crowd that counts
    nowhere.
    """
    entries = [
        AnnotatedImage(
            number,
            f"{number}.png",
            image[1],
            image[0],
            (
                {"category_id": 1, "bbox": [0.0, 0.0, side * stretch, side / stretch]},
                {"category_id": 1, "bbox": [0.0, 0.0, 1.0, 1.0], "iscrowd": 1},
            ),
        )
        for number, side in enumerate(sides)
    ]
    return BoxSamples(Path(), entries, {1: "one"}, 3, masks=False)


def spec(**fields: Any) -> Any:
    return (
        get_recipe("boxes")
        .with_fields(**{f"detection.{name}": value for name, value in fields.items()})
        .detection
    )


def test_objects_of_a_good_size_leave_the_images_as_they_are():
    found = measured(samples(list(np.linspace(20, 100, 50))), spec(), MEASURABLE)
    assert found["resize"] is None
    assert found["anchors"][0] == pytest.approx(24, abs=1)
    assert found["anchors"][-1] == 128, "the objects end at 96, two cells of that map are 128"
    assert found["canvas"] == (384, 384)
    assert found["scale"] == (0.6, 1.6)


@pytest.mark.parametrize(("side", "factor"), [(10, 1.6), (4, 2.0), (300, 128 / 300), (32, 1.0)])
def test_images_are_enlarged_for_small_objects_and_reduced_for_large_ones(side, factor):
    held = BoxSizes.of(samples([side] * 20))
    assert held.factor == pytest.approx(factor)
    resize = held.resize()
    assert (400 if resize is None else resize) == pytest.approx(400 * factor, abs=0.5)
    anchors = held.anchors(resize)
    assert anchors[0] == pytest.approx(max(side * factor / 2, 4), rel=0.02)
    assert covered(samples([side] * 20), anchors, resize) == 1.0


@pytest.mark.parametrize("head", ["fasterrcnn", "maskrcnn", "retinanet"])
@pytest.mark.parametrize("seed", range(5))
def test_an_anchor_is_as_wide_as_two_cells_of_its_map_or_twice_the_one_before(head, seed):
    """Narrower ones stand so far apart that most objects of their size lie between them."""
    rng = np.random.default_rng(seed)
    held = samples(list(rng.lognormal(rng.uniform(2, 4), 0.5, 200)), image=(256, 256))
    found = measured(held, spec(head=head), MEASURABLE)["anchors"]
    first = 8 if head == "retinanet" else 4
    for level in range(1, 5):
        assert found[level] >= min(2 * first * 2**level, 2 * found[level - 1]) - 0.2
        assert found[level] <= 2.5 * found[level - 1], "and none falls between two of them"


def test_large_images_are_reduced():
    held = BoxSizes.of(samples([40] * 10, image=(2000, 4000)))
    assert held.resize() == round(2000 * 1333 / 4000)


def test_a_halved_copy_gets_the_same_anchors():
    """Images and boxes of half the size are enlarged until the detector sees what it saw."""
    sides = list(np.random.default_rng(0).uniform(12, 60, 100))
    whole = samples(sides, image=(400, 400))
    half = samples([side / 2 for side in sides], image=(200, 200))
    one, two = (measured(held, spec(), MEASURABLE) for held in (whole, half))
    assert two["resize"] is not None
    share = [
        covered(held, found["anchors"], found["resize"])
        for held, found in ((whole, one), (half, two))
    ]
    assert min(share) > 0.95
    fixed = [covered(held, (32, 64, 128, 256, 512), None) for held in (whole, half)]
    assert fixed[1] < 0.6, "which anchors that are not measured do not reach"


@pytest.mark.parametrize("stretch", [1.0, 1.4])
@pytest.mark.parametrize("seed", range(5))
def test_nearly_every_object_has_an_anchor(seed, stretch):
    rng = np.random.default_rng(seed)
    held = samples(
        list(rng.lognormal(rng.uniform(2, 5), 0.6, 200)), image=(600, 800), stretch=stretch
    )
    found = measured(held, spec(), MEASURABLE)
    assert covered(held, found["anchors"], found["resize"]) > 0.85


def test_what_is_set_is_not_measured():
    assert spec(anchors=(5, 6, 7, 8, 9)).measure == ("resize", "canvas", "scale")
    assert spec(resize=300).measure == ("anchors", "canvas", "scale")
    given = spec(resize=800)
    found = measured(samples([50] * 10), given, given.measure)
    assert "resize" not in found
    assert found["anchors"][2] == pytest.approx(100, rel=0.02), (
        "of the images at the size that is set"
    )
    with pytest.raises(
        UsageError, match=r"no field of detection that can be measured named 'width'"
    ):
        get_recipe("boxes").with_fields(**{"detection.measure": ("width",)}).check()


def test_without_objects_the_recipe_s_own_sizes_stay():
    assert measured(samples([]), spec(), MEASURABLE) == {}


def test_a_run_takes_and_says_what_was_measured(tmp_path: Path):
    recipe = get_recipe("boxes").quick(tmp_path).with_fields(**{"detection.measure": MEASURABLE})
    task = open_task(recipe)
    assert task.recipe.detection is not None
    assert task.construction()["head"]["anchors"] == list(task.recipe.detection.anchors or ())
    assert task.fitted.changed["detection.anchors"][1] == task.recipe.detection.anchors
    assert any(
        "measured on the training objects: detection.resize" in line
        for line in task.fitted.sentences(16)
    )
    again = open_task(recipe)
    assert again.recipe == task.recipe, "a run that is continued measures the same"


@pytest.mark.parametrize("name", ["nuclei", "labels"])
def test_a_size_that_would_have_no_effect_is_refused(name: str):
    with pytest.raises(
        UsageError,
        match=r"data\.image_size=64 has no effect in (detection|segmentation), where images keep "
        r"their shape: set",
    ):
        get_recipe(name).with_fields(**{"data.image_size": 64})


def test_images_of_unlike_sizes_keep_them():
    """One shorter side for all would shrink the large ones, whose objects are as small."""
    small, large = samples([10] * 20, image=(200, 300)), samples([10] * 20, image=(900, 1000))
    both = BoxSamples(Path(), [*small.entries, *large.entries], {1: "one"}, 3, masks=False)
    assert BoxSizes.of(small).resize() == 320
    assert BoxSizes.of(both).resize() is None
    assert covered(both, measured(both, spec(), MEASURABLE)["anchors"], None) == 1.0
