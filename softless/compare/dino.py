"""Self-supervision under one recipe and several operators: what frozen features are worth, against
the same networks untrained and against pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from softless.compare.models import checked_operators, left_out, with_operator
from softless.compare.record import record_path, write_csv
from softless.compare.training import prepared, run_folder, trained
from softless.data.datasets import open_parts
from softless.data.loader import eval_loader
from softless.data.pictures import for_people
from softless.data.samples import Samples
from softless.data.transforms import Pipeline
from softless.errors import UsageError, need
from softless.evaluation.features import Reading, extract, layers, output
from softless.evaluation.intervals import wilson
from softless.evaluation.knn import K, nearest
from softless.experiment.recipe import Recipe
from softless.report.groups import operator_title
from softless.report.runs import read_run
from softless.tasks import page
from softless.tasks.dino.model import spread
from softless.tasks.loaded import load_run
from softless.tasks.table import open_task
from softless.training.model import build_for
from softless.training.world import choose_device
from softless.words import table

PIXELS = 32  # side to which images are reduced where their pixels are the features
# C of the linear classifier, chosen on the validation part
STRENGTHS = tuple(10.0**power for power in range(-5, 2))


@dataclass(frozen=True)
class FeatureScores:
    """One kind of features of the test images, and what they are worth."""

    model: str
    operator: str
    trained: bool
    seed: int | None
    knn: float
    knn_interval: tuple[float, float]
    linear: float
    linear_interval: tuple[float, float]
    strength: float  # C that the validation part chose
    spread: float | None
    epochs: int
    seconds: float  # of training
    width: int  # of the features of the linear classifier


@dataclass(frozen=True)
class SelfSupervised:
    """Pixels, untrained networks, and the same networks after DINO."""

    recipe: str
    rows_: tuple[FeatureScores, ...]
    images: Mapping[str, int]  # part -> number
    only: Mapping[str, Mapping[str, Any]]  # operator -> options of the recipe that it does not have
    diverged: Mapping[str, str]
    report: Path | None
    recorded: Path | None

    def rows(self) -> list[dict[str, Any]]:
        """A row per kind of features, with the numbers of images."""
        return [
            {
                "model": row.model,
                "operator": row.operator,
                "trained": "dino" if row.trained else "no",
                "seed": "" if row.seed is None else row.seed,
                "knn": round(row.knn, 4),
                "knn_low": round(row.knn_interval[0], 4),
                "knn_high": round(row.knn_interval[1], 4),
                "linear": round(row.linear, 4),
                "linear_low": round(row.linear_interval[0], 4),
                "linear_high": round(row.linear_interval[1], 4),
                "linear_C": f"{row.strength:g}",
                "spread": "" if row.spread is None else round(row.spread, 3),
                "epochs": row.epochs,
                "seconds": round(row.seconds, 1),
                "width": row.width,
                "recipe": self.recipe,
                "train": self.images["train"],
                "test": self.images["test"],
            }
            for row in self.rows_
        ]

    def to_dict(self) -> dict[str, Any]:
        missing_options = {op: dict(options) for op, options in self.only.items()}
        return {
            "rows": self.rows(),
            "left_out": missing_options,
            "report": str(self.report),
            "diverged": dict(self.diverged),
        }

    def __str__(self) -> str:
        cells = []
        for row in self.rows_:
            name = (
                row.model
                if row.seed is None or not row.trained
                else f"{row.model}, seed {row.seed}"
            )
            spread = "–" if row.spread is None else f"{row.spread:.2f}"
            cells.append([
                name,
                _with(row.knn, row.knn_interval),
                _with(row.linear, row.linear_interval),
                spread,
                row.epochs,
                f"{row.seconds:.0f}",
            ])
        head = [
            "",
            f"{K}-NN (95 % interval)",
            "linear (95 % interval)",
            "spread",
            "epochs",
            "seconds",
        ]
        sentences = [
            f"{op} does not have, and so ran without: {', '.join(map(str, options))}"
            for op, options in self.only.items()
        ]
        sentences += [f"{name} diverged: {why}" for name, why in self.diverged.items()]
        sentences += [f"report: {self.report}"] if self.report else []
        sentences += [f"recorded: {self.recorded}"] if self.recorded else []
        return "\n".join([table(head, cells), "", *sentences])


def dino(
    recipe: str | Recipe = "dino",
    ops: Sequence[str] = (),
    *,
    data: str | Path | None = None,
    epochs: int | None = None,
    set: str | Sequence[str] | Mapping[str, Any] = (),
    seeds: int = 1,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    record: bool = False,
    device: str = "auto",
) -> SelfSupervised:
    """Train a recipe of DINO with several operators, labels unused, and measure what the frozen
    features are worth.

    All rows are measured alike: 20-NN as in DINO; and multinomial logistic regression on
    standardised features (those of `features.layers`, or the pixels). The validation part chooses
    its C among powers of ten. SGD with the papers' settings makes too few steps on small data.

    Args:
        recipe: name, or a Recipe.
        ops: operators; sima and xca by default.
        data: class folders with train and test.
        epochs: how long each trains; the recipe's own length by default.
        set: fields of the recipe, as field=value: `softless list recipes NAME`. In Python also one
            text, or a mapping.
        seeds: how many, from the recipe's own seed on.
        out: folder for the runs and report.html; runs/RECIPE-bench by default.
        overwrite: delete the runs that the folder holds.
        resume: keep finished runs and continue those that were stopped.
        record: also write benchmarks/dino.csv of the repository.
        device: auto, cpu, cuda, mps.

    Raises:
        UsageError: a recipe of another task, data without labels or without a test part, or a
            folder that already holds these runs.
    """
    chosen = prepared(recipe, data, epochs, set)
    if chosen.task != "dino":
        raise UsageError(
            f"recipe '{chosen.name}' is for {chosen.task}: bench dino takes one of self-supervision"
        )
    target = record_path("dino") if record else None
    recipes = {op: with_operator(chosen, op) for op in checked_operators(ops or ("sima", "xca"))}
    task = open_task(chosen)
    labelled = Labelled.of(chosen, task.splits.train, task.splits.val)
    rows = [labelled.pixels()]
    chosen_device = choose_device(device)
    for op, variant in recipes.items():
        seeded = [replace(variant, seed=variant.seed + number) for number in range(seeds)]
        rows += [
            labelled.row(each, op, _untrained(each, chosen_device), task.transform(train=False))
            for each in seeded
        ]
    folder = Path(out or Path("runs") / f"{chosen.name}-bench")
    runs, diverged = trained(
        recipes, folder, seeds, resume=resume, overwrite=overwrite, device=device
    )
    for op, variant in recipes.items():
        for seed in range(variant.seed, variant.seed + seeds):
            if (run_dir := run_folder(folder, op, seed)) in runs:
                loaded = load_run(run_dir, chosen_device)
                rows.append(
                    labelled.row(
                        replace(variant, seed=seed), op, loaded.model, loaded.transform, run_dir
                    )
                )
    compared = SelfSupervised(
        recipe=chosen.name,
        rows_=tuple(rows),
        images={"train": len(labelled.train), "val": len(labelled.val), "test": len(labelled.test)},
        only={op: options for op in recipes if (options := left_out(chosen, op))},
        diverged=diverged,
        report=page.write(runs, folder / "report.html"),
        recorded=target,
    )
    if target is not None:
        write_csv(target, compared.rows())
    return compared


def _untrained(recipe: Recipe, device: torch.device) -> nn.Module:
    """The network from which the run of this seed starts."""
    task = open_task(recipe)
    return task.evaluated(build_for(task)).to(device).eval()


@dataclass(frozen=True)
class Labelled:
    """Images whose labels measure the features: the train folder whole, the part that chooses C,
    and the test folder.
    """

    train: Samples
    train_without_val: Samples  # of the train folder, without what was cut off for validation
    val: Samples
    test: Samples
    classes: tuple[str, ...]

    @classmethod
    def of(cls, recipe: Recipe, train_without_val: Samples, val: Samples) -> "Labelled":
        """The parts of the recipe's data, with what was cut off for validation.

        Raises:
            UsageError: the data have no train part or no test part.
        """
        parts, classes = open_parts(recipe.data)
        if not {"train", "test"} <= parts.keys():
            raise UsageError(
                f"{recipe.data.path} has no train and test parts: features of a train part answer "
                "a test part"
            )
        return cls(parts["train"], train_without_val, val, parts["test"], classes)

    def row(
        self,
        recipe: Recipe,
        op: str,
        model: nn.Module,
        transform: Pipeline,
        folder: Path | None = None,
    ) -> FeatureScores:
        """A network's features."""

        def of(read: Reading) -> list[tuple[Tensor, Tensor]]:
            loaders = [
                eval_loader(part, transform, batch=64)
                for part in (self.train, self.train_without_val, self.val, self.test)
            ]
            return [extract(model, loader, read, label=f"features of {op}") for loader in loaders]

        run = None if folder is None else read_run(folder)
        name = f"{operator_title(op)}, {'untrained' if run is None else 'DINO'}"
        seconds = 0.0 if run is None else float(run.result["seconds"])
        epochs = 0 if run is None else int(run.result["epochs"])
        return self._measured(
            name, op, recipe.seed, run is not None, of(output), of(layers), epochs, seconds
        )

    def pixels(self) -> FeatureScores:
        """The images themselves, reduced."""
        parts = [self.train, self.train_without_val, self.val, self.test]
        raw = [
            torch.from_numpy(
                np.stack([_reduced(part, index) for index in range(len(part))])
            ).float()
            for part in parts
        ]
        mean, std = raw[0].mean(0), raw[0].std(0).clamp_min(1e-6)
        features = [
            ((x - mean) / std, torch.from_numpy(part.targets))
            for x, part in zip(raw, parts, strict=True)
        ]
        return self._measured(
            f"pixels, {PIXELS} x {PIXELS}",
            "",
            None,
            False,  # noqa: FBT003
            features,
            features,
            0,
            0.0,
        )

    def _measured(
        self,
        name: str,
        op: str,
        seed: int | None,
        trained: bool,
        shallow: Any,
        deep: Any,
        epochs: int,
        seconds: float,
    ) -> FeatureScores:

        bank, _, _, test_part = shallow
        probe = nearest(bank, test_part, self.classes, min(K, len(bank[0])))
        correct, images, strength = logistic(*deep)
        return FeatureScores(
            model=name,
            operator=op,
            trained=trained,
            seed=seed,
            knn=probe.accuracy,
            knn_interval=probe.interval,
            linear=correct / images,
            linear_interval=wilson(correct, images),
            strength=strength,
            spread=spread(test_part[0]) if op else None,
            epochs=epochs,
            seconds=seconds,
            width=deep[0][0].shape[1],
        )


def logistic(
    train: tuple[Tensor, Tensor],
    train_without_val: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
) -> tuple[int, int, float]:
    """Logistic regression on standardised features: how many of how many test images are right,
    and C.

    C is what a classifier of `train_without_val` answers `val` best with (the smallest of equals);
    the classifier of `train` with that C answers `test`. Mean and deviation are those of `train`.

    Args:
        train: features (n, D) and classes (n,), as each of the other parts.
        train_without_val: what chooses C is fitted on it.
        val: what chooses C is scored on it.
        test: what is answered.

    Returns:
        Test images that are right, all of them, C.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    need("sklearn")
    from sklearn.linear_model import LogisticRegression

    mean, std = train[0].mean(0), train[0].std(0).clamp_min(1e-6)
    scaled = [
        (((x - mean) / std).double().numpy(), y.numpy())
        for x, y in (train, train_without_val, val, test)
    ]

    def classifier(strength: float, part: tuple[np.ndarray, np.ndarray]) -> Any:
        return LogisticRegression(C=strength, max_iter=5000).fit(*part)

    best = max(
        STRENGTHS,
        key=lambda strength: (classifier(strength, scaled[1]).score(*scaled[2]), -strength),
    )
    answers = classifier(best, scaled[0]).predict(scaled[3][0])
    return int((answers == scaled[3][1]).sum()), len(answers), best


def _reduced(samples: Samples, index: int) -> np.ndarray:
    image = for_people(samples.image(index)).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32).reshape(-1) / 255


def _with(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
