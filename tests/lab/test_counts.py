"""A count that hangs on the device is found and named."""

import dataclasses

import pytest
import torch

from lab.counts import SMALL, Counted, Counts, counts
from softless.attention import get
from softless.compare.models import host_and_operator
from softless.errors import UsageError
from softless.experiment.groups import ModelSpec
from softless.measure.cost import cost
from softless.models import create_model


@pytest.fixture(scope="module")
def found() -> Counts:
    return counts(["sima_xcit_nano_12_p16_224"])


def test_a_model_is_counted_at_two_sizes_and_alike_on_both_devices(found: Counts) -> None:
    host, op = host_and_operator(ModelSpec("sima_xcit_nano_12_p16_224"))
    assert [(one.model, one.op, one.pixels) for one in found.models] == [
        (host, op, 224),
        (host, op, 320),
    ]
    assert found.exit_code == 0
    small, large = (row["macs"] for row in found.to_dict()["rows"])
    assert 2 * (small / 224**2) > large / 320**2 > 0.9 * small / 224**2, (
        "SimA is linear in the pixels"
    )
    assert "2 counted on cpu and meta, 0 differ or miss a formula" in str(found)


@pytest.mark.parametrize("host", SMALL)
def test_the_hosts_of_all_operators_take_operators(host: str) -> None:
    """A name that stands for one operator would be refused with every other, and nothing of it
    counted.
    """
    with torch.device("meta"):
        model = create_model(host, op="sima")
    assert any(getattr(module, "op", None) is get("sima") for module in model.modules())


@pytest.mark.extra
def test_an_operator_without_a_place_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.counts.SMALL", ("cvt_13_224",))
    found = counts(["sima_xcit_nano_12_p16_224"], ops=["soft"])
    assert len(found.models) == 2
    (told,) = found.refused
    assert told.startswith("cvt_13_224 with soft: operator 'soft' has no place in CvT")
    assert told in str(found)


def test_an_unknown_model_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="no model named 'sima_diet'"):
        counts(["sima_diet"])


def test_differences_and_missing_formulas_fail(found: Counts) -> None:
    one = found.models[0]
    other = dataclasses.replace(one.counts["meta"], macs=1)
    differing = Counts((Counted("m", "sima", 224, {**one.counts, "meta": other}),))
    assert (differing.exit_code, differing.to_dict()["rows"][0]["differing"]) == (1, "macs")
    missing = dataclasses.replace(one.counts["cpu"], uncounted=("aten::new",))
    assert Counts((Counted("m", "sima", 224, {"cpu": missing, "meta": missing}),)).exit_code == 1


@pytest.mark.extra
@pytest.mark.parametrize("host", SMALL[1:3], ids=["XCiT", "CvT"])
def test_statistics_of_batchnorm_count_on_no_device(host: str) -> None:
    """Some devices keep them in evaluation, others do not: the bytes for backward and at the peak
    are those of activations.
    """
    seen = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            seen.append(cost(create_model(host, op="sima"), 64))
    assert seen[0] == seen[1]
