"""`softless cost`: counts of a named model, as text and as JSON, and what it refuses."""

import json

import pytest

import softless
from softless.cli.main import main


def test_a_named_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "deit_tiny_patch16_224"]) == 0
    text = capsys.readouterr().out
    assert "5,717,416" in text
    assert "1.254 G" in text


def test_json_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main([
            "cost",
            "deit_tiny_patch16_224",
            "--op",
            "sima",
            "--act",
            "relu",
            "--height",
            "32",
            "--width",
            "64",
            "--json",
        ])
        == 0
    )
    counted = json.loads(capsys.readouterr().out)
    assert counted["input_size"] == [3, 32, 64]
    assert counted["transcendentals"] == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["deit_tinny_patch16_224"], "Did you mean 'deit_tiny_patch16_224'"),
        (["deit_tiny_patch16_224", "--op", "smia"], "Did you mean 'sima'"),
        (["deit_tiny_patch16_224", "--height", "32"], "--height and --width together"),
        (["sima_deit_tiny_patch16_224", "--input-size", "100"], "image is 100 x 100"),
        (["."], "train first"),
    ],
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_model_of_timm_at_another_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "deit_tiny_patch16_224", "--input-size", "64"]) == 0
    assert "3 x 64 x 64" in capsys.readouterr().out
    with pytest.raises(softless.UsageError, match="dynamic_img_size=True"):
        softless.cost(softless.create_model("deit_tiny_patch16_224"), 64)
