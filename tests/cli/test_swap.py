"""`softless swap`: the report with its two audits, the file it leaves, and what it refuses."""

import json
from collections import Counter
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open

import softless
from softless.cli.main import main
from softless.recovery.pictures import drawn

NAME = "deit_tiny_patch16_224"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((96, 64), 60 + number).convert("RGB").save(folder / f"{number}.png")
    return folder


def test_the_report_and_the_weights_that_it_leaves(tmp_path, photos, capsys):
    out = tmp_path / "swapped.safetensors"
    words = [
        "--calibrate",
        str(photos),
        "--images",
        "2",
        "--layers",
        "blocks.[0-2].*",
        "--set",
        "token_scale=tokens",
    ]
    assert main(["swap", NAME, *words, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["swapped"]) == [f"blocks.{i}.attn" for i in range(3)] == list(told["gains"])
    assert len(told["kept"]) == 9
    one_block = 3 * 197**2
    assert told["kinds_before"]["softmax"] == 12 * one_block
    assert told["kinds_after"]["softmax"] == 9 * one_block
    assert told["kinds_after"]["gelu"] == told["kinds_before"]["gelu"] == 12 * 197 * 768
    assert not told["exp_free"]
    with safe_open(out, "pt") as file:
        stored = json.loads(file.metadata()["softless.swap"])
    assert stored == {
        "model": NAME,
        "op": "sima",
        "options": {"token_scale": "tokens"},
        "layers": ["blocks.[0-2].*"],
        "force": [],
    }
    again = timm.create_model(stored["model"]).eval()
    softless.swap(again, stored["op"], layers=stored["layers"], **stored["options"])
    softless.load_weights(again, out)
    first: Any = again.get_submodule("blocks.0.attn")
    assert first.options == {"token_scale": "tokens"}
    assert all(
        torch.equal(tensor, again.state_dict()[name])
        for name, tensor in softless_state(out).items()
    )


def softless_state(path):
    from safetensors.torch import load_file

    return load_file(path)


def test_weights_from_before_the_swap(tmp_path, capsys):
    model: Any = timm.create_model(NAME)
    with torch.no_grad():
        model.blocks[0].attn.proj.weight.fill_(0.25)
    torch.save({"model": model.state_dict()}, tmp_path / "deit.pth")
    out = tmp_path / "out.safetensors"
    assert main(["swap", NAME, "--weights", str(tmp_path / "deit.pth"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "12 attention modules now compute 'sima', 0 are kept" in said
    assert f"{12 * 3 * 197**2:,}" in next(
        line for line in said.splitlines() if line.split()[:1] == ["softmax"]
    )
    assert softless_state(out)["blocks.0.attn.proj.weight"].unique().tolist() == [0.25]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["swin_tiny_patch4_window7_224"], "windows"),
        ([NAME, "--op", "smia"], "Did you mean 'sima'"),
        ([NAME, "--set", "scale=2"], "no option of operator 'sima'"),
        ([NAME, "--layers", "stages.*"], "no attention module fits"),
        ([NAME, "--out", "x.pth"], "or a file that ends in .safetensors"),
        ([NAME, "--out", "nowhere/x.safetensors"], "there is no folder nowhere"),
        ([NAME, "--calibrate", "nowhere"], "no images at nowhere"),
        ([NAME, "--weights", "a.pth", "--pretrained"], "choose one"),
        ([NAME, "--weights", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_refusals(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["swap", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_images_are_drawn_from_every_class():
    """The first by name would be of one class alone."""
    files = [f"{name}/{number}.png" for name in ("ant", "bee", "cat") for number in range(50)]
    chosen = drawn(files)[:7]
    counts = Counter(files[index].split("/")[0] for index in chosen)
    assert sorted(counts.values()) == [2, 2, 3]
    assert chosen == drawn(files)[:7]
    assert len({*chosen}) == 7
    assert sorted(drawn(files)) == list(range(150))


def test_a_model_of_ones_own(tmp_path, photos, capsys):
    """Three classes, one channel, 64 pixels: as the checkpoint has them."""
    own: dict[str, Any] = {"num_classes": 3, "in_chans": 1, "img_size": 64}
    torch.save(timm.create_model(NAME, **own).state_dict(), tmp_path / "own.pth")
    words = [
        "--weights",
        str(tmp_path / "own.pth"),
        "--num-classes",
        "3",
        "--in-chans",
        "1",
        "--image-size",
        "64",
    ]
    out = tmp_path / "out.safetensors"
    assert (
        main(["swap", NAME, *words, "--calibrate", str(photos), "--out", str(out), "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["kinds_before"]["softmax"] == 12 * 3 * 17**2
    assert told["untried"] == ""
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["softless.swap"])["arguments"] == own
    assert main(["swap", NAME, *words[:2]]) == 2
    assert "other classes" in capsys.readouterr().err
    assert main(["swap", NAME, "--image-size", "0"]) == 2
    assert "--image-size 0: give a positive number" in capsys.readouterr().err


def test_a_folder_that_opens_with_its_operator(tmp_path, photos, capsys):
    """Of one's own model: one channel, an image that is not square, fine-tuned weights."""
    own: dict[str, Any] = {"num_classes": 3, "in_chans": 1, "img_size": 64}
    torch.save(timm.create_model(NAME, **own).state_dict(), tmp_path / "own.pth")
    words = ["--num-classes", "3", "--in-chans", "1", "--image-size", "64"]
    words += ["--weights", str(tmp_path / "own.pth"), "--calibrate", str(photos)]
    out = tmp_path / "swapped"
    assert (
        main(["swap", NAME, "soft", *words, "--layers", "blocks.[1-3].*", "--out", str(out)]) == 0
    )
    assert capsys.readouterr().out.endswith(f"model: {out}\n")
    model: Any = softless.create_model(f"local-dir:{out}", pretrained=True)
    ops = [getattr(getattr(block.attn, "op", None), "name", "") for block in model.blocks]
    assert ops == ["", "soft", "soft", "soft", *[""] * 8]
    assert model.blocks[1].attn.options["sampling"] == "pool"
    assert len(model.pretrained_cfg["mean"]) == 1
    assert main(["predict", str(out), str(photos), str(tmp_path / "said"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 3
    assert main(["swap", NAME, "--out", str(out)]) == 2
    assert "holds files already: name a new folder" in capsys.readouterr().err
