"""Weights of another architecture: the refusal says which named model they are of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm

import softless
from softless.cli.main import main
from softless.errors import SoftlessError, UsageError
from softless.models import ENTRIES, load_weights
from softless.models.nearest import build_of, nearest
from softless.models.variants import Variant
from tests.models.kinds import kinds_of_hosts


@pytest.mark.parametrize("row", kinds_of_hosts(), ids=lambda row: row.name)
def test_every_host_is_known_by_its_tensors(row: Variant) -> None:
    made = softless.create_model(row.name, op=row.operators[0])
    shown, same = nearest(made.state_dict()) or ("", False)
    assert (ENTRIES[shown].variant.name, same) == (row.name, True)


@pytest.mark.bar("C7", "weights of another architecture: the nearest named model is said")
def test_weights_of_another_model_name_it() -> None:
    model = softless.create_model("deit_tiny_patch16_224", op="sima")
    other = softless.create_model("xcit_nano_12_p16_224", op="sima").state_dict()
    with pytest.raises(
        UsageError, match=r"by its tensors the file is of 'sima_xcit_nano_12_p16_224'$"
    ) as raised:
        load_weights(model, other)
    assert len(str(raised.value)) < 1000
    odd = timm.create_model(
        "vit_tiny_patch16_224", depth=11, embed_dim=180, num_heads=3
    ).state_dict()
    with pytest.raises(
        UsageError, match=r"the nearest named model is 'sima_deit_tiny_patch16_224'$"
    ):
        load_weights(model, odd)


def test_other_classes_and_unknown_tensors_name_none() -> None:
    model = softless.create_model("deit_tiny_patch16_224", op="sima")
    other = softless.create_model("deit_tiny_patch16_224", op="sima", num_classes=7).state_dict()
    with pytest.raises(UsageError, match=r"other classes") as raised:
        load_weights(model, other)
    assert "named model" not in str(raised.value)
    assert "by its tensors" not in str(raised.value)
    assert build_of({"conv.weight": other["head.weight"]}) is None


def test_every_door_names_three_of_either_side_and_the_nearest_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """load_weights, a folder for a model, for its maps alone or in other channels, and the swap
    command.
    """
    other = softless.create_model("sima_xcit_nano_12_p16_224", num_classes=3)
    softless.save_weights(other, tmp_path / "other")
    model = softless.create_model("sima_deit_tiny_patch16_224", num_classes=3)
    softless.save_weights(model, tmp_path / "folder")
    (tmp_path / "folder" / "digests.json").unlink()
    (tmp_path / "folder" / "model.safetensors").write_bytes(
        (tmp_path / "other" / "model.safetensors").read_bytes()
    )
    folder = f"local-dir:{tmp_path / 'folder'}"
    doors: list[Callable[[], Any]] = [
        lambda: load_weights(model, tmp_path / "other"),
        lambda: softless.create_model(folder, pretrained=True),
        lambda: softless.create_model(folder, pretrained=True, features_only=True),
        lambda: softless.create_model(folder, pretrained=True, in_chans=1),
        lambda: softless.create_model(folder, pretrained=True, num_classes=0),
    ]
    told = []
    for door in doors:
        with pytest.raises(SoftlessError) as raised:
            door()
        told.append(str(raised.value))
    weights = str(tmp_path / "other" / "model.safetensors")
    assert main(["swap", "deit_tiny_patch16_224", "--num-classes", "3", "--weights", weights]) == 2
    told.append(capsys.readouterr().err.strip())
    for said in told:
        assert "\n" not in said
        assert said.count("has no place in the model") + said.count(" in the file and ") == 3, said
        assert said.count("is missing") == 3, said
        assert "by its tensors the file is of 'sima_xcit_nano_12_p16_224'" in said, said
