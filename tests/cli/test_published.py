"""A folder of `save_weights` in the place of a run: every verb and function that takes a model opens
it, and images are prepared as its config.json says.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import softless
from softless import DataError, UsageError
from softless.cli.main import main
from softless.tasks.loaded import load_run

CLASSES = ("owl", "cat", "bee")  # not in the order of their names
SIZE = (32, 48)
GREY: dict[str, Any] = {"mean": [0.4], "std": [0.3]}


def drawn(channels: int, op: str = "sima", **arguments: Any) -> Any:
    """A swapped ViT of which every class is somebody's answer."""
    torch.manual_seed(channels)
    model: Any = softless.create_model(
        "vit_tiny_patch16_224",
        depth=2,
        embed_dim=48,
        num_heads=3,
        **{"num_classes": 3, "img_size": SIZE, "in_chans": channels, **arguments},
    )
    softless.swap(model, op, layers="blocks.1.*")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
        if arguments.get("num_classes") != 0:
            model.head.bias -= model.eval()(2 * torch.randn(64, channels, *SIZE)).mean(0)
    return model.eval()


@pytest.fixture(scope="module", params=[3, 1], ids=["colours", "grey"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder with and without names, and images in class folders with a train and a test part."""
    channels: int = request.param
    place = tmp_path_factory.mktemp(f"made{channels}")
    model, data = drawn(channels), (GREY if channels == 1 else {"crop_pct": 0.75})
    softless.save_weights(model, place / "named", data=data, classes=CLASSES)
    softless.save_weights(model, place / "unnamed", data=data)
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in CLASSES:
            (place / "photos" / part / name).mkdir(parents=True)
            for number in range(4):
                shape = (40, 70, 3) if channels == 3 else (40, 70)
                pixels = generator.integers(0, 60 * (number + 1), shape, dtype=np.uint8)
                Image.fromarray(pixels).save(place / "photos" / part / name / f"{number}.png")
    return place, model, channels


def by_hand(place: Path, model: Any, channels: int) -> dict[str, torch.Tensor]:
    """Probabilities (3,) of each test image, by timm's own transform."""
    prepare: Any = timm.data.create_transform(
        (channels, *SIZE),
        mean=(0.4,) if channels == 1 else model.pretrained_cfg["mean"],
        std=(0.3,) if channels == 1 else model.pretrained_cfg["std"],
        crop_pct=model.pretrained_cfg["crop_pct"] if channels == 1 else 0.75,
        interpolation=model.pretrained_cfg["interpolation"],
    )
    root = place / "photos" / "test"
    with torch.no_grad():
        return {
            file.relative_to(root).as_posix(): model(prepare(Image.open(file))[None])[0].softmax(0)
            for file in sorted(root.rglob("*.png"))
        }


def ran(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def rows(path: Path) -> list[Mapping[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predict(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, model, channels = made
    expected = by_hand(place, model, channels)
    for source, names in (("named", CLASSES), ("unnamed", ("0", "1", "2"))):
        out = tmp_path / source
        folder = f"local-dir:{place / source}" if source == "named" else str(place / source)
        told = ran(capsys, "predict", folder, str(place / "photos" / "test"), "--out", str(out))
        assert set(told["counts"]) == set(names)
        for row in rows(out / "predictions.csv"):
            answer = torch.tensor([float(row[name]) for name in names])
            torch.testing.assert_close(answer, expected[row["file"]], atol=2e-6, rtol=0)
            assert row["predicted"] == names[int(expected[row["file"]].argmax())]
        assert len(list((out / "saliency").rglob("*.png"))) == 12


def test_eval_matches_classes_by_name(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The folders' order is that of the alphabet, the model's is not."""
    place, model, channels = made
    answers = by_hand(place, model, channels)

    def confusion(names: Sequence[str]) -> list[list[int]]:
        table = [[0] * 3 for _ in names]
        for name, row in answers.items():
            table[names.index(name.split("/")[0])][int(row.argmax())] += 1
        return table

    taken = sorted(CLASSES)
    told = ran(capsys, "eval", f"local-dir:{place / 'named'}", "--data", str(place / "photos"))
    assert told["confusion"] == confusion(CLASSES)
    assert told["classes"] == list(CLASSES)
    assert main(["eval", str(place / "unnamed"), str(place / "photos"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["confusion"] == confusion(taken) != confusion(CLASSES)
    assert json.loads(said.out)["classes"] == taken
    assert "does not name its classes: those of" in said.err
    assert "in the order of its answers (bee, cat, owl)" in said.err


def test_eval_of_other_classes(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, _, channels = made
    for name in ("owl", "fox"):
        (tmp_path / "two" / name).mkdir(parents=True)
        image = Image.open(place / "photos" / "test" / "owl" / "0.png")
        image.save(tmp_path / "two" / name / "0.png")
    assert main(["eval", str(place / "named"), str(tmp_path / "two")]) == 2
    assert "are not those of the published model" in capsys.readouterr().err
    assert main(["eval", str(place / "unnamed"), str(tmp_path / "two")]) == 2
    said = capsys.readouterr().err
    assert "has 2 classes, and" in said
    assert "answers 3, which it does not name: save it again with" in said
    assert main(["eval", str(place / "named")]) == 2
    assert "does not say where labelled images are" in capsys.readouterr().err
    del channels


def test_neighbours(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    place, _, _ = made
    told = ran(capsys, "eval", str(place / "unnamed"), str(place / "photos"), "--knn", "3")
    assert 0 <= told["knn"]["knn"] <= 1


def test_the_other_verbs(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """audit, cost, explain, slide, bench latency and swap itself."""
    place, model, channels = made
    monkeypatch.chdir(tmp_path)
    name, photo = f"local-dir:{place / 'named'}", str(place / "photos" / "test" / "owl" / "0.png")
    told = ran(capsys, "audit", name, code=1)
    assert told["kinds"]["softmax"] == 3 * 7 * 7  # of the block that kept it
    told = ran(capsys, "cost", name)
    assert told["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert len(ran(capsys, "explain", name, photo)["files"]) == 1
    told = ran(capsys, "bench", "latency", name, "--rounds", "2", "--runtimes", "eager")
    assert [told["rows"][0][side] for side in ("height", "width")] == list(SIZE)
    assert main(["audit", name, "--op", "sima"]) == 2
    assert "--op and --act go with the name of a model" in capsys.readouterr().err
    told = ran(capsys, "swap", name, "relu_linear", "--layers", "blocks.0.*", "--out", "again")
    assert told["kinds_after"].get("softmax", 0) == 0
    again: Any = softless.create_model("local-dir:again", pretrained=True)
    assert [block.attn.op.name for block in again.blocks] == ["relu_linear", "sima"]
    assert again.pretrained_cfg["label_names"] == list(CLASSES)
    assert [*again.pretrained_cfg["input_size"]] == [channels, *SIZE]


def test_an_exported_file(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the names of the classes, so it is measured and answers as the folder does."""
    place, model, channels = made
    folder = str(place / "named")
    told = ran(capsys, "export", folder, "--format", "pt2", "--out", str(tmp_path / "files"))
    assert told["ok"]
    file, photos = str(tmp_path / "files" / "model.pt2"), str(place / "photos")
    of_file, of_folder = (ran(capsys, "eval", source, photos) for source in (file, folder))
    assert of_file["confusion"] == of_folder["confusion"]
    ran(capsys, "predict", file, f"{photos}/test", "--out", str(tmp_path / "out"))
    expected = by_hand(place, model, channels)
    for row in rows(tmp_path / "out" / "predictions.csv"):
        answer = torch.tensor([float(row[name]) for name in CLASSES])
        torch.testing.assert_close(answer, expected[row["file"]], atol=1e-5, rtol=0)


def test_functions(made: Any, tmp_path: Path) -> None:
    """optimize, stream and explain take the folder, as text or path, and answer as the model."""
    place, model, channels = made
    x = torch.randn(1, channels, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        fast = softless.optimize(place / "named", torch.float32)
        torch.testing.assert_close(fast(x), model(x), atol=1e-4, rtol=1e-4)
    for source in (f"local-dir:{place / 'named'}", place / "unnamed"):
        assert softless.explain(source, x).query.shape == (1, 2, 3)
    whole = drawn(channels, img_size=32, dynamic_img_size=True)
    softless.swap(whole, "sima")
    data = GREY if channels == 1 else None
    softless.save_weights(whole, tmp_path / "w", data=data)
    result: Any = softless.stream(f"local-dir:{tmp_path / 'w'}", x, chunk=4, quiet=True)
    torch.testing.assert_close(result.logits, whole(x), atol=1e-5, rtol=1e-5)


def test_what_is_no_published_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    for words, said in (
        (["eval", f"local-dir:{tmp_path}/nowhere", str(tmp_path)], "holds no published model"),
        (["predict", f"local-dir:{tmp_path}/empty", str(tmp_path), "o"], "no published model"),
        (["audit", f"local-dir:{tmp_path}/empty"], "holds no published model"),
        (["eval", str(tmp_path / "half"), str(tmp_path)], "names no model"),
        (["eval", str(tmp_path / "empty"), str(tmp_path)], "holds no finished epoch"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    with pytest.raises(UsageError, match="takes a model, and 'deit_tiny' is a text"):
        softless.optimize("deit_tiny")


def test_a_model_without_a_classifier(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its features are measured, and it names nothing."""
    place, _, channels = made
    headless = drawn(channels, num_classes=0)
    softless.save_weights(headless, tmp_path / "w", data=GREY if channels == 1 else None)
    told = ran(capsys, "eval", str(tmp_path / "w"), str(place / "photos"), "--knn", "2")
    assert told["knn"]["width"] == 48
    assert main(["predict", str(tmp_path / "w"), str(place / "photos"), str(tmp_path / "o")]) == 2
    assert "names nothing: see `softless eval --knn`" in capsys.readouterr().err


def test_several_labels_an_image(tmp_path: Path) -> None:
    """A model that was trained so answers each label by itself, here too."""
    softless.save_weights(
        drawn(3), tmp_path / "w", data={"task": "multilabel"}, classes=["a", "b", "c"]
    )
    loaded = load_run(tmp_path / "w")
    assert loaded.task == "multilabel"
    assert loaded.classes == ("a", "b", "c")
    again = softless.save_weights(loaded.model, tmp_path / "again")
    assert load_run(again).task == "multilabel"
    plain = softless.save_weights(loaded.model, tmp_path / "p", data={"task": "classification"})
    assert load_run(plain).task == "classification"
    with pytest.raises(UsageError, match="one label"):
        softless.save_weights(loaded.model, tmp_path / "x", data={"task": "dino"})


def test_framing_comes_from_the_folder(tmp_path: Path) -> None:
    """A squashed image keeps what a centre crop cuts off."""
    model = drawn(3)
    softless.save_weights(model, tmp_path / "w", data={"crop_mode": "squash", "crop_pct": 1.0})
    pixels = np.random.default_rng(1).integers(0, 255, (40, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    again: Any = softless.create_model(f"local-dir:{tmp_path / 'w'}")
    theirs: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(again))
    assert torch.equal(load_run(tmp_path / "w").transform(image), theirs(image))
    softless.save_weights(model, tmp_path / "c", data={"crop_pct": 1.0})
    assert not torch.equal(load_run(tmp_path / "c").transform(image), theirs(image))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "b"], "2 names, and the model has 3 classes"),
        (["a", "b", "a"], "a name is there twice"),
        (["a", "b", ""], "texts of 1 to 255"),
        (["a", "b", 3], "texts of 1 to 255"),
        ([["a"], "b", "c"], "texts of 1 to 255"),
        (["a", "b", "c" * 300], "texts of 1 to 255"),
        ("abcd", "4 names"),
    ],
    ids=str,
)
def test_names_of_classes_that_do_not_fit(names: Any, said: str, tmp_path: Path) -> None:
    """When they are saved, and when somebody else's file has them."""
    with pytest.raises(UsageError, match=said):
        softless.save_weights(drawn(3), tmp_path / "w", classes=names)
    folder = softless.save_weights(drawn(3), tmp_path / "w", classes=["é", "b c", "../x"])
    assert load_run(folder).classes == ("é", "b c", "../x")
    (folder / "digests.json").unlink()
    content = json.loads((folder / "config.json").read_text())
    content["pretrained_cfg"]["label_names"] = names
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"config\.json has label_names that are not read"):
        softless.create_model(f"local-dir:{folder}")


def test_names_of_other_logits_are_forgotten(tmp_path: Path) -> None:
    folder = softless.save_weights(drawn(3), tmp_path / "w", classes=CLASSES)
    other: Any = softless.create_model(f"local-dir:{folder}", pretrained=True, num_classes=2)
    assert not other.pretrained_cfg.get("label_names")
    whole: Any = softless.create_model(f"local-dir:{folder}", pretrained=True)
    assert load_run(softless.save_weights(whole, tmp_path / "same")).classes == CLASSES
    whole.reset_classifier(4)
    again = load_run(softless.save_weights(whole, tmp_path / "four"))
    assert not again.named
    assert again.classes == ("0", "1", "2", "3")
