"""`softless data check`: exit codes, text and JSON."""

import json

import pytest

from softless.cli.data import data
from softless.cli.main import main
from softless.errors import UsageError
from softless.tasks import check
from tests.data.corpus import BAD, put_bad
from tests.data.making import class_folders, medmnist, noise


def test_clean_and_not(tmp_path, capsys):
    class_folders(tmp_path, {"cat": 3, "dog": 3})
    assert main(["data", "check", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == f"{tmp_path} (class folders): 6 images seen, 6 good"
    assert said.out.splitlines()[-1] == "clean"
    assert not said.err
    put_bad(tmp_path / "cat")
    assert main(["data", "check", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert all(f"  cat/{name}: " in said.out for name in BAD)
    assert "Traceback" not in said.err
    assert main(["data", "check", str(tmp_path), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert sorted(path for path, _ in content["bad"]) == sorted(f"cat/{name}" for name in BAD)
    assert (content["seen"], content["good"]) == (6 + len(BAD), 6)


def test_options(tmp_path, capsys):
    class_folders(tmp_path, {"cat": 2, "dog": 2})
    noise(seed=0).save(tmp_path / "dog" / "same.png")  # cat/00.png again
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "cat/00.png = dog/same.png" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path), "--strict"]) == 1
    assert main(["data", "check", str(tmp_path), "--min-side", "17"]) == 1
    assert "too small: 5" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path), "--max-pixels", "100"]) == 1
    assert "too many pixels: 5" in capsys.readouterr().out


def test_an_npz(tmp_path, capsys):
    assert main(["data", "check", str(medmnist(tmp_path / "toy.npz"))]) == 0
    assert "toy.npz (npz): 27 images seen, 27 good" in capsys.readouterr().out


def test_a_coco_file(tmp_path, capsys):
    noise(20, 16).save(tmp_path / "a.png")
    box = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, 0, 4]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 16}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [box],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    assert main(["data", "check", str(tmp_path / "set.json"), "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)["bad"]
    assert row[:2] == ["a.png", 7]
    assert "both must be positive" in row[2]
    box["bbox"] = [1, 2, 3, 4]
    (tmp_path / "set.json").write_text(json.dumps(content))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "pictures" / "a.png")
    words = ["data", "check", str(tmp_path / "set.json")]
    assert main(words) == 1
    assert "a.png: no such file" in capsys.readouterr().out
    assert main([*words, "--images", str(tmp_path / "pictures")]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "nowhere"], "no data at nowhere"),
        (["check"], "needs --path"),
        ([], "needs --what"),
        (["chek", "."], "invalid choice: 'chek'"),
        (["check", ".", "--min-side", "0"], "SOFTLESS_MIN_SIDE=0: the limit is a whole number"),
        (["check", "tests", "--images", "x"], "images=x is for COCO"),
    ],
)
def test_misuse(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    assert main(["data", *words]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert not said.out


def test_an_empty_folder(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "holds no class folders and no images" in capsys.readouterr().err


def test_the_function_is_the_same(tmp_path):
    class_folders(tmp_path, {"cat": 2, "dog": 2})
    assert data("check", tmp_path) == check.check(tmp_path)
    with pytest.raises(
        UsageError, match=r"no use of `softless data` named 'chck'\. Did you mean 'check'"
    ):
        data("chck", tmp_path)  # type: ignore[arg-type]
