"""A model and datasets that were built in Python train under the same durable loop, and callbacks
see each epoch.
"""

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

import softless
from softless.data import Pipeline, TransformedSamples
from softless.data.given import DatasetSamples, ItemReading, data_given, given_parts, parts_of
from softless.data.pictures import tensor_of
from softless.errors import DataError, UsageError
from softless.models.given import model_given
from softless.report.groups import grouped
from softless.report.runs import read_run
from softless.tasks.loaded import load_run
from softless.training.epoch_state import EpochState
from tests.training.test_loop import lines, same, state, untimed

SMALL = {
    "data.image_size": 16,
    "data.in_chans": 1,
    "schedule.epochs": 3,
    "schedule.warmup_epochs": 0,
    "batch_size": 8,
    "threads": 1,
    "data.workers": 0,
}


class Shades(Dataset[Any]):
    """Grey images whose brightness says the class."""

    def __init__(self, count: int, seed: int = 0, form: str = "pil", classes: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.targets = np.arange(count) % classes
        noise = rng.integers(0, 90, (count, 16, 16)) + 60 * self.targets[:, None, None]
        self.images, self.form = noise.astype(np.uint8), form

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        pixels = self.images[place]
        forms = {
            "pil": lambda: Image.fromarray(pixels),
            "array": lambda: pixels,
            "bytes": lambda: torch.from_numpy(pixels)[None],
            "unit": lambda: torch.from_numpy(pixels)[None].float() / 255,
        }
        return forms[self.form](), int(self.targets[place])


class Jittered(Shades):
    """The same, a row of each image drawn anew at each reading."""

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        image, target = super().__getitem__(place)
        pixels = np.array(image)
        pixels[0] = torch.randint(0, 255, (16,)).numpy()
        return pixels, target


def data(form: str = "pil") -> tuple[Shades, Shades, Shades]:
    return Shades(48, 0, form), Shades(18, 1, form), Shades(15, 2, form)


def small_resnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("resnet10t", num_classes=3, in_chans=1)


def swapped_vit(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=3,
        in_chans=1,
    )
    softless.swap(vit, "sima")
    return vit


def run(out: Path, **given: Any) -> Any:
    return softless.train(data=data(), set=SMALL, out=out, device="cpu", **given)


@pytest.mark.parametrize("build", [small_resnet, swapped_vit])
def test_a_model_of_ones_own_resumes_with_the_same_bits(tmp_path: Path, monkeypatch, build):
    """timm's ResNet and a swapped ViT, which their names alone do not build."""
    from softless.training import loop

    whole = run(tmp_path / "whole", model=build())
    inner, count = loop.train_step, []

    def dies(*args):
        count.append(1)
        if len(count) == 9:
            raise KeyboardInterrupt
        return inner(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", model=build())
    other = build(seed=7)  # its own weights do not matter any more
    again = softless.train(
        data=data(), model=other, out=tmp_path / "cut", resume=True, device="cpu"
    )
    assert same(state(tmp_path / "whole"), state(tmp_path / "cut"))
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "cut")
    assert again.test == whole.test
    loaded = load_run_with(build(3), tmp_path / "cut")
    for name, value in other.state_dict().items():
        assert torch.equal(value, loaded[name]), "the module holds the best weights"
    found = softless.eval(tmp_path / "cut", data(), model=build(5), device="cpu")
    assert found.evaluation.metrics.top1 == whole.test["top1"]
    assert (tmp_path / "cut" / "report.html").is_file()


def load_run_with(model: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    with model_given(model):
        return dict(load_run(path).model.state_dict())


def test_without_the_objects_it_says_what_to_give(tmp_path: Path):
    run(tmp_path / "run", model=small_resnet())
    with pytest.raises(UsageError, match=r"timm.*ResNet\) was built in Python.*model=…"):
        softless.eval(tmp_path / "run", device="cpu")
    with pytest.raises(DataError, match=r"datasets built in Python: give them again.*data=…"):
        softless.eval(tmp_path / "run", model=small_resnet(), device="cpu")
    with pytest.raises(UsageError, match=r"is a timm.*ResNet, and a .*VisionTransformer was given"):
        softless.eval(tmp_path / "run", data(), model=swapped_vit(), device="cpu")
    other = timm.create_model("resnet10t", num_classes=4, in_chans=1)
    with pytest.raises(UsageError, match="has other tensors than the one of this run"):
        softless.eval(tmp_path / "run", data(), model=other, device="cpu")


@pytest.mark.parametrize("form", ["array", "bytes", "unit"])
def test_every_form_of_an_image_is_the_same_run(tmp_path: Path, form: str):
    found = {}
    for name in ("pil", form):
        softless.train(
            model=swapped_vit(), data=data(name), set=SMALL, out=tmp_path / name, device="cpu"
        )
        found[name] = untimed(tmp_path / name)
    assert found["pil"] == found[form]


def test_other_pixels_are_noticed_at_resume(tmp_path: Path):
    run(tmp_path / "run", model=swapped_vit())
    (tmp_path / "run" / "result.json").unlink()
    changed = data()
    changed[0].images[3, 2, 2] ^= 1
    with pytest.raises(softless.SoftlessError, match=r"cannot resume from"):
        softless.train(
            data=changed, model=swapped_vit(), out=tmp_path / "run", resume=True, device="cpu"
        )


def test_a_training_set_may_draw_its_own_changes(tmp_path: Path):
    """They derive from seed, epoch and place, and nothing of them is kept in memory."""
    for name in ("one", "two"):
        torch.manual_seed(hash(name) % 1000)
        parts = {"train": Jittered(48), "val": Shades(18, 1), "test": Shades(15, 2)}
        softless.train(
            model=swapped_vit(), data=parts, set=SMALL, out=tmp_path / name, device="cpu"
        )
    assert untimed(tmp_path / "one") == untimed(tmp_path / "two")
    with pytest.raises(DataError, match=r"of the val dataset changes from one reading to the next"):
        softless.train(
            model=swapped_vit(), data=(Shades(48), Jittered(18)), set=SMALL, out=tmp_path / "no"
        )
    with pytest.raises(
        DataError, match=r"validation part is cut from it: give data=\(train, val\)"
    ):
        softless.train(model=swapped_vit(), data=Jittered(48), set=SMALL, out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


class Flipped(Shades):
    """Each image turned over, half of the time, by one of the global generators or one of its
    own.
    """

    def __init__(self, count: int, seed: int = 0, own: bool = False) -> None:
        super().__init__(count, seed)
        self.own = np.random.default_rng() if own else None

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        image, target = super().__getitem__(place)
        drawn = torch.rand(()) if self.own is None else self.own.random()
        return np.array(image)[:, :: 1 if drawn < 0.5 else -1].copy(), target


def test_changes_that_come_half_of_the_time_are_seen_and_stay(caplog: pytest.LogCaptureFixture):
    """Two readings of one image may be equal by chance, and an image that is kept would change no
    more.
    """
    for _ in range(10):
        with (
            data_given(parts_of((Shades(48), Flipped(18)))),
            pytest.raises(DataError, match="of the val dataset changes"),
        ):
            given_parts(ItemReading(1))
    with data_given(parts_of((Flipped(48), Shades(18)))):
        samples = given_parts(ItemReading(1))[0]["train"]
    seen = TransformedSamples(samples, Pipeline([np.array, tensor_of], [], fixed=True))
    epochs = []
    for epoch in range(8):
        seen.set_epoch(epoch)
        epochs.append(seen[0][0].numpy().tobytes())
    assert len(set(epochs)) == 2
    assert "generator of its own" not in caplog.text
    with (
        data_given(parts_of((Flipped(48, own=True), Shades(18)))),
        caplog.at_level(logging.WARNING),
    ):
        drawn = given_parts(ItemReading(1))[0]["train"]
    assert isinstance(drawn, DatasetSamples)
    assert drawn.digest == ""
    assert "the train dataset draws from a generator of its own" in caplog.text


class Labelled(Shades):
    def __getitem__(self, place: int) -> tuple[Any, Any]:
        image, target = super().__getitem__(place)
        return image, np.array([target > 0, target > 1])


def test_several_labels_are_learnt_together(tmp_path: Path):
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=8,
        embed_dim=16,
        depth=1,
        num_heads=2,
        num_classes=2,
        in_chans=1,
    )
    parts = (Labelled(48), Labelled(18, 1), Labelled(15, 2))
    result = softless.train(model=vit, data=parts, set=SMALL, out=tmp_path / "run", device="cpu")
    assert result.metric == "auc"
    assert set(result.test["per_class"]["auc"]) == {"0", "1"}


def test_one_dataset_is_cut_and_a_named_model_takes_it(tmp_path: Path):
    fields = {
        **SMALL,
        "model.name": "vit_tiny_patch16_224",
        "model.op": "seqnorm",
        "model.args.depth": 1,
    }
    result = softless.train(
        "classify", data=Shades(60), set=fields, out=tmp_path / "run", device="cpu"
    )
    assert result.val["expected"] == 9
    assert load_run(tmp_path / "run").best["architecture"] == "vit_tiny_patch16_224"


def test_each_epoch_is_told_and_may_be_the_last(tmp_path: Path):
    seen: list[EpochState] = []

    def on_epoch(state: EpochState) -> None:
        seen.append(state)
        if state.epoch == 2:
            state.stop()

    result = run(tmp_path / "run", model=swapped_vit(), on_epoch=on_epoch)
    assert [state.epoch for state in seen] == [1, 2]
    assert [dict(state.scores) for state in seen] == [
        {**line, "kept": state.scores["kept"]}
        for line, state in zip(lines(tmp_path / "run"), seen, strict=True)
    ]
    assert seen[1].best is not None
    assert (result.epochs, result.planned, result.ended_by) == (2, 3, "on_epoch")
    assert "ended by on_epoch after 2 of 3 epochs" in str(result)
    table = softless.runs(tmp_path / "run")
    assert "ended by on_epoch, 3 epochs were planned" in str(table)
    again = softless.train(
        data=data(), model=swapped_vit(), out=tmp_path / "run", resume=True, device="cpu"
    )
    assert again == result


def test_a_run_that_was_asked_to_end_stays_ended_after_a_kill(tmp_path: Path, monkeypatch):
    from softless.training import loop

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", model=swapped_vit(), on_epoch=lambda state: state.stop())
    again = softless.train(
        data=data(), model=swapped_vit(), out=tmp_path / "run", resume=True, device="cpu"
    )
    assert (again.epochs, again.ended_by) == (1, "on_epoch")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["ended_by"] == "on_epoch"


class Odd(Shades):
    """One item that is wrong."""

    def __init__(self, item: Any) -> None:
        super().__init__(48)
        self.item = item

    def __getitem__(self, place: int) -> Any:
        return self.item if place == 5 else super().__getitem__(place)


GOOD = np.zeros((16, 16), dtype=np.uint8)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (GOOD, r"item 5 of the train dataset is a ndarray, not a pair"),
        ((GOOD, 1.5), r"target 5 of the train dataset is 1.5: give a class number"),
        ((GOOD, -1), r"target 5 of the train dataset is -1: classes are numbered from 0"),
        ((GOOD, [0, 2]), r"target 5 of the train dataset is \[0, 2\]: several labels are 0 or 1"),
        ((GOOD, [0, 1]), r"targets of the train dataset have several shapes"),
        (
            (torch.randn(1, 16, 16), 0),
            r"image 5 of the train dataset has values of .* that are no 8 bits: leave Normalize",
        ),
        (
            (GOOD.astype(np.int64) + 4000, 0),
            r"image 5 .* 4000 to 4000 \(int64\) that are no 8 bits.*declare",
        ),
        (
            (np.zeros((2, 16, 16, 1, 1)), 0),
            r"image 5 of the train dataset has the shape \(2, 16, 16, 1, 1\)",
        ),
        (
            (np.zeros((16, 16, 7), dtype=np.uint8), 0),
            r"image 5 .* has 7 channels and the model takes 1",
        ),
        ((Image.new("CMYK", (16, 16)), 0), r"Pillow's mode CMYK: convert it"),
    ],
)
def test_a_bad_item_is_named_before_any_work(tmp_path: Path, item: Any, said: str):
    with pytest.raises(DataError, match=said):
        softless.train(
            model=swapped_vit(), data=(Odd(item), Shades(18, 1)), set=SMALL, out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_deep_images_take_a_declared_range(tmp_path: Path):
    class Deep(Shades):
        def __getitem__(self, place: int) -> tuple[Any, Any]:
            return self.images[place].astype(np.int32) * 16, int(self.targets[place])

    fields = {**SMALL, "data.range": "0..4095"}
    result = softless.train(
        model=swapped_vit(),
        data=(Deep(48), Deep(18, 1)),
        set=fields,
        out=tmp_path / "run",
        device="cpu",
    )
    assert result.val["seen"] == 18


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "vit"}, r"takes a model, and 'vit' is a text"),
        (
            {"model": nn.Linear(3, 3)},
            r"the model that was given takes no images of 1 channels and 16 x 16",
        ),
        (
            {"set": {**SMALL, "model.op": "sima"}},
            r"model.op is of a model by name, and model=… was given",
        ),
        (
            {"recipe": "cards"},
            r"dataset of \(image, target\) is for classification; recipe 'cards'",
        ),
        ({"folds": 3}, r"folds are runs of a model by name"),
        ({"data": (1, 2)}, r"the train dataset is a int"),
        (
            {"data": DataLoader(Shades(9))},
            r"data is a DataLoader, .*: give its dataset: batches are the recipe's",
        ),
        ({"data": 7}, r"data is a int, which is no path"),
        ({"on_epoch": 3}, r"on_epoch is a int: give a function"),
        ({"data": {"train": Shades(8), "other": Shades(8)}}, r"data has the parts train, other"),
        ({"data": (Shades(0), Shades(9))}, r"the train dataset is empty"),
        ({"data": (Shades(9, classes=1), Shades(9, classes=1))}, r"every target is the same class"),
        (
            {"data": (Shades(24, classes=5), Shades(10, classes=5))},
            r"answers \(2, 3\) for 2 images, and the data have 5",
        ),
    ],
)
def test_what_cannot_be_trained_is_said_before_any_work(
    tmp_path: Path, given: dict[str, Any], said: str
):
    asked: dict[str, Any] = {
        "model": swapped_vit(),
        "data": data(),
        "set": SMALL,
        "out": tmp_path / "run",
        **given,
    }
    with pytest.raises(UsageError, match=said):
        softless.train(**asked)
    assert not (tmp_path / "run").exists()


def test_the_size_that_the_model_says_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    fields = {name: value for name, value in SMALL.items() if name != "data.image_size"}
    with caplog.at_level(logging.WARNING):
        softless.train(
            model=swapped_vit(), data=data(), set=fields, out=tmp_path / "run", device="cpu"
        )
    assert load_run_image_size(tmp_path / "run") == 16


def load_run_image_size(path: Path) -> int:
    return int(json.loads((path / "best.json").read_text())["image_size"])


def test_parts_by_place_and_by_name():
    one, two, three = data()
    assert parts_of([one, two]) == {"train": one, "val": two}
    assert parts_of({"train": one, "test": three, "val": None}) == {"train": one, "test": three}
    assert parts_of(one) == {"all": one}


def test_the_command_line_has_no_objects(capsys: pytest.CaptureFixture[str]):
    from softless.cli.main import main

    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--on-epoch" not in said
    assert "--model " not in said
    assert (
        main(["train", "--recipe", "classify", "--set", "data.source=given", "--out", "never"]) == 2
    )
    assert "datasets built in Python" in capsys.readouterr().err


def test_the_page_names_what_was_built(tmp_path: Path):
    """A network without attention is no softmax."""
    for build, title in ((small_resnet, "ResNet"), (swapped_vit, "SimA")):
        out = tmp_path / title
        run(out, model=build())
        assert title in (out / "report.html").read_text()
        assert read_run(out).operator == {"ResNet": "none", "SimA": "sima"}[title]
        assert grouped([read_run(out)])[0].label == title


KILLED = """
import sys
from tests.training.test_given import SMALL, data, small_resnet
import softless
softless.train(
    model=small_resnet(), data=data(), out=sys.argv[1], device="cpu",
    set={**SMALL, "accumulate": 2, "batch_size": 4, "save.every_steps": 1, "schedule.epochs": 6},
)
"""


@pytest.mark.soak
def test_killed_for_good_it_goes_on_with_the_same_bits(tmp_path: Path):
    """SIGKILL after some steps of two batches each, of a model and datasets of one's own."""
    fields = {
        **SMALL,
        "accumulate": 2,
        "batch_size": 4,
        "save.every_steps": 1,
        "schedule.epochs": 6,
    }
    softless.train(
        model=small_resnet(), data=data(), set=fields, out=tmp_path / "whole", device="cpu"
    )
    out = tmp_path / "cut"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out)], stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 600
        while len(list((out / "checkpoints").glob("*"))) < 2 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (out / "result.json").exists()
    softless.train(model=small_resnet(9), data=data(), out=out, resume=True, device="cpu")
    assert same(state(tmp_path / "whole"), state(out))
    assert untimed(tmp_path / "whole") == untimed(out)
