"""A count that hangs on the device is found and named."""

import dataclasses

import pytest

from softless.benching.counts import SMALL, Counted, Counts, counts
from softless.benching.models import host_and_operator
from softless.measure.cost import cost
from softless.models import create_model
from softless.training.recipe import ModelSpec


@pytest.fixture(scope="module")
def found() -> Counts:
    return counts(["sima_xcit_nano_12_p16_224"])


def test_a_model_is_counted_at_two_sizes_and_alike_on_both_devices(found: Counts) -> None:
    host, op = host_and_operator(ModelSpec("sima_xcit_nano_12_p16_224"))
    assert [(one.model, one.op, one.pixels) for one in found.found] == [(host, op, 224), (host, op, 320)]
    assert found.exit_code == 0
    small, large = (row["macs"] for row in found.to_dict()["rows"])
    assert 2 * (small / 224**2) > large / 320**2 > 0.9 * small / 224**2, "SimA is linear in the pixels"
    assert "2 counted on cpu and meta, 0 differ or miss a formula" in str(found)


def test_differences_and_missing_formulas_fail(found: Counts) -> None:
    one = found.found[0]
    other = dataclasses.replace(one.counts["meta"], macs=1)
    differing = Counts((Counted("m", "sima", 224, {**one.counts, "meta": other}),))
    assert (differing.exit_code, differing.to_dict()["rows"][0]["differing"]) == (1, "macs")
    missing = dataclasses.replace(one.counts["cpu"], uncounted=("aten::new",))
    assert Counts((Counted("m", "sima", 224, {"cpu": missing, "meta": missing}),)).exit_code == 1


@pytest.mark.parametrize("host", SMALL[1:3], ids=["XCiT", "CvT"])
def test_statistics_of_batchnorm_count_on_no_device(host: str) -> None:
    """Some devices keep them in evaluation, others do not: the bytes for backward and at the peak are those of activations."""
    import torch

    seen = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            seen.append(cost(create_model(host, op="sima"), 64))
    assert seen[0] == seen[1]
