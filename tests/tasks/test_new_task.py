"""A new task is its folder and its line: `tests/tasks/brightness/`, put into a copy of the package,
trains, is measured, answers and has its page, and no other file of the package is touched.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.training.conftest import write_npz
from tools import stairs, task_fields

FOLDER = Path(__file__).with_name("brightness")
LINE = '    "brightness",\n'
RECIPE = """
from dataclasses import replace

from softless.experiment.groups import DataSpec, ModelSpec
from softless.experiment.recipe import Recipe
from softless.tasks.brightness.settings import BrightnessSpec


def recipe() -> Recipe:
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    whole = Recipe(
        name="bright",
        summary="for tests",
        model=ModelSpec(name="vit_tiny_patch16_224", op="sima", args=args),
        data=DataSpec(source="npz", image_size=16, in_chans=1, crop_pct=1.0, workers=0),
        brightness=BrightnessSpec(),
        batch_size=24,
        metric="off",
    )
    augment = replace(whole.augment, auto_augment=None, color_jitter=None)
    return replace(whole, augment=augment)
"""
# the checkout is installed in a way that comes ahead of PYTHONPATH
ALONE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the package with the folder of a new task and its line."""
    root = tmp_path / "house"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "native")
    for package in ("softless", "softless_command"):
        shutil.copytree(ROOT / package, root / package, ignore=ignored)
    shutil.copytree(FOLDER, root / "softless" / "tasks" / FOLDER.name, ignore=ignored)
    table = root / "softless" / "tasks" / "folders.py"
    text = table.read_text()
    assert text.count('    "dino",\n') == 1
    table.write_text(text.replace('    "dino",\n', f'    "dino",\n{LINE}'))
    (root / "sitecustomize.py").write_text(ALONE)
    (root / "bright.py").write_text(RECIPE)
    return root


def ran(house: Path, *arguments: str) -> str:
    """What a Python that sees the copy alone writes."""
    environment = {**os.environ, "PYTHONPATH": str(house), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=house,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_command_trains_measures_answers_and_shows_a_new_task(house: Path):
    path, run = str(write_npz(house / "images.npz")), str(house / "run")
    short = ["schedule.epochs=1", "schedule.warmup_epochs=0", "brightness.power=1.5"]
    train = ["train", "--recipe", "bright.py", "--data", path, "--out", run, "--set", *short]
    ran(house, "-m", "softless", *train)
    steps = (house / "run" / "log.jsonl").read_text().splitlines()
    stored = json.loads((house / "run" / "recipe.json").read_text())
    assert len(steps) == 1, "one epoch of two steps"
    assert stored["brightness"] == {"power": 1.5, "width": 64}
    assert list(stored).index("brightness") == list(stored).index("dino") + 1
    result = json.loads((house / "run" / "result.json").read_text())
    measured = json.loads(ran(house, "-m", "softless", "eval", run, "--json"))
    assert measured["off"] == pytest.approx(result["test"]["off"], rel=1e-5)
    assert f"The brightness is off by {result['test']['off']:.3f}." in (
        house / "run" / "report.html"
    ).read_text(encoding="utf-8")
    ran(house, "-m", "softless", "predict", run, path, "--out", str(house / "answers"))
    lines = (house / "answers" / "brightness.csv").read_text().splitlines()
    assert len(lines) > 1
    assert f"off {result['val']['off']:.2f}" in ran(house, "-m", "softless", "runs", run)


QUICK = """
from pathlib import Path
from softless.experiment.groups import CLASSIFIES, DENSE
from softless.experiment.recipe import SHRINK
from softless.recipes import get_recipe
from softless.tasks.loaded import load_run
from softless.tasks.table import TABLE
from softless.training.loop import fit
import softless
recipe = get_recipe("bright.py").quick(Path("quick"))
assert recipe.brightness.width == 6
assert list(TABLE) == list(SHRINK) and list(TABLE)[-1] == "brightness"
assert "brightness" not in DENSE | CLASSIFIES
result = fit(recipe, Path("fitted"))
loaded = load_run("fitted")
print(softless.__file__, loaded.task, type(loaded.model).__name__)
"""


def test_its_quick_run_goes_through_the_loop(house: Path):
    printed = ran(house, "-c", QUICK).split()
    assert printed[0].startswith(str(house)), "of the copy"
    assert printed[1:] == ["brightness", "BrightnessModel"]


def test_the_stairs_stay_as_they_are(house: Path):
    assert stairs.main(["--check"], house) == 0
    counted = stairs.imports(house)
    gathered = {edge.source for edge in counted if ".brightness." in edge.target}
    assert {"softless.experiment.task_fields", "softless.tasks.table"} <= gathered


def test_type_checkers_read_the_groups_that_there_are():
    assert task_fields.main(["--check"]) == 0
    text = task_fields.stub({**task_fields.GROUPS, "other": task_fields.TaskSettings})
    assert "    detection: DetectionSpec | None = ...\n" in text
    assert "    other: TaskSettings | None = ...\n" in text
    assert "from softless.experiment.fields import TaskSettings\n" in text
