"""Small models trained at one image size and evaluated from half to four times that size."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softless.attention.registry import OPERATORS
from softless.compare.models import with_operator
from softless.compare.record import record_path, write_csv
from softless.compare.resolution_chart import Point, draw_resolution
from softless.compare.training import prepared, run_folder, trained
from softless.data.datasets import open_parts
from softless.data.loader import eval_loader
from softless.data.samples import Samples
from softless.data.transforms import eval_transform
from softless.errors import UsageError
from softless.evaluation.evaluate import evaluate
from softless.evaluation.intervals import bootstrap_mean, paired_bootstrap
from softless.evaluation.run import LoadedRun
from softless.experiment.groups import DataSpec
from softless.experiment.recipe import Recipe
from softless.layers.attention import Attention
from softless.layers.class_attention import ClassAttention
from softless.models.hosts import tokens_ahead
from softless.models.sides import sides
from softless.tasks.loaded import load_run
from softless.training.model import build_model
from softless.training.world import choose_device
from softless.words import table

FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # of the training size
SIDE = (
    # patches along a side of the small ViT, where the recipe has no ViT of its own: half of them is
    # a whole number
    8
)
BRANCH_IMAGES = 32  # on which the size of the attention's branch is measured


@dataclass(frozen=True)
class Arm:
    """One line of the chart: what is trained, and the options that are set for the evaluation."""

    name: str
    op: str
    options: Mapping[str, Any] = field(default_factory=dict)
    trained_as: str = ""  # the arm whose runs are evaluated, where it is another
    label: str = ""


N_TRAIN = "tokens at the training size"
ARMS = (
    Arm("softmax", "softmax", label="softmax"),
    Arm("sima", "sima", label="SimA, the paper's scale"),
    Arm(
        "sima_rescaled",
        "sima",
        {"token_scale": N_TRAIN},
        "sima",
        "SimA, the paper's scale in training, token_scale=N_train in evaluation",
    ),
    Arm("sima_tokens", "sima", {"token_scale": "tokens"}, label='SimA, token_scale="tokens"'),
    Arm("seqnorm", "seqnorm", label="SeqNorm"),
    Arm("xca", "xca", label="XCA"),
)


@dataclass(frozen=True)
class ResolutionStudy:
    """The outcome; prints as one table of accuracies and one of branch sizes."""

    points: tuple[Point, ...]
    figure: Path
    diverged: Mapping[str, str]
    recorded: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": [asdict(point) for point in self.points],
            "diverged": dict(self.diverged),
            "figure": str(self.figure),
        }

    def __str__(self) -> str:
        arms = list(dict.fromkeys(point.arm for point in self.points))
        sizes = list(dict.fromkeys((point.pixels, point.tokens) for point in self.points))
        by_place = {(point.arm, point.pixels): point for point in self.points}

        def rows(cell: Any) -> list[list[str]]:
            return [[arm, *(cell(by_place[arm, pixels]) for pixels, _ in sizes)] for arm in arms]

        head = [f"{pixels} px, {tokens} tokens" for pixels, tokens in sizes]
        return "\n".join([
            table(["accuracy", *head], rows(lambda point: f"{point.accuracy:.4f}")),
            "",
            table(["attention's branch", *head], rows(lambda point: f"{point.branch:.3g}")),
            "",
            *(f"{name} diverged: {why}" for name, why in self.diverged.items()),
            f"figure: {self.figure}",
            *([f"recorded: {self.recorded}"] if self.recorded else []),
        ])


FIGURE = "Accuracy and size of the attention's branch over the image size"


def resolution(
    recipe: str | Recipe = "digits",
    *,
    data: str | Path | None = None,
    image_size: int | None = None,
    epochs: int | None = None,
    set: str | Sequence[str] | Mapping[str, Any] = (),
    seeds: int = 1,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    record: bool = False,
    device: str = "auto",
) -> ResolutionStudy:
    """Train the recipe's model per operator at one image size, and evaluate it on the test images
    at 0.5 to 4 times that size.

    A ViT's position table is resampled to each grid as timm does, for all alike. Beside accuracy it
    measures the attention's branch: the paper's SimA loses it as the tokens grow in number.

    Args:
        recipe: name, or a Recipe.
        data: folder of class folders, or .npz file, for recipes that take one.
        image_size: of training, in pixels; the recipe's own by default.
        epochs: how long each trains; the recipe's own length by default.
        set: fields of the recipe, as field=value: `softless list recipes NAME`. In Python also one
            text, or a mapping.
        seeds: how many, from the recipe's own seed on.
        out: folder for the runs and the chart; runs/RECIPE-resolution by default.
        overwrite: delete the runs that the folder holds.
        resume: keep finished runs and continue those that were stopped.
        record: also write benchmarks/resolution_RECIPE.csv and docs/figures/resolution_RECIPE.svg
            of the repository.
        device: auto, cpu, cuda, mps.

    Raises:
        UsageError: unknown recipe, an image size that does not divide into an even number of
            patches, a folder that already holds these runs, data without a test split.
        DivergedError: every run diverged.
    """
    chosen = prepared(recipe, data, epochs, set)
    if image_size is not None:
        chosen = _at_size(chosen, image_size)
    recipes = {arm.name: in_arm(chosen, arm) for arm in ARMS if not arm.trained_as}
    side = chosen.data.image_size
    if not isinstance(side, int):
        raise UsageError(
            f"data.image_size={side}: bench resolution takes squares; set one number, or "
            "--image-size"
        )
    pixels = _checked_sizes(side, _patch(build_model(recipes["softmax"], 2, chosen.data.in_chans)))
    target = record_path(f"resolution_{chosen.name}") if record else None
    folder = Path(out or Path("runs") / f"{chosen.name}-resolution")
    test = _test_images(chosen)
    _, diverged = trained(recipes, folder, seeds, resume=resume, overwrite=overwrite, device=device)
    chosen_device = str(choose_device(device))
    points: list[Point] = []
    for arm in ARMS:
        source = arm.trained_as or arm.name
        finished_seeds = [
            seed
            for seed in range(chosen.seed, chosen.seed + seeds)
            if f"{source}-seed{seed}" not in diverged
        ]
        if finished_seeds:
            runs = [
                _loaded(run_folder(folder, source, seed), arm, chosen_device)
                for seed in finished_seeds
            ]
            points += _measured(chosen.name, arm, finished_seeds, runs, test, pixels)
    drawing = draw_resolution(points, {arm.name: arm.label for arm in ARMS})
    figure = drawing.save(folder / "resolution.svg", FIGURE)
    if target is not None:
        write_csv(target, [asdict(point) for point in points])
        figure = drawing.save(target.parents[1] / "docs" / "figures" / f"{target.stem}.svg", FIGURE)
    return ResolutionStudy(tuple(points), figure, diverged, target)


def in_arm(recipe: Recipe, arm: Arm) -> Recipe:
    """The recipe with an arm's operator and options; those of other operators and arms are left
    out.
    """
    operator_options = {name for operator in OPERATORS.values() for name in operator.options}
    bare = {
        name: value for name, value in recipe.model.args.items() if name not in operator_options
    }
    model = replace(recipe.model, args={**bare, **({} if arm.trained_as else arm.options)})
    return with_operator(replace(recipe, model=model), arm.op)


def _at_size(recipe: Recipe, pixels: int) -> Recipe:
    if pixels < 1:
        raise UsageError(f"image_size={pixels}: it must be positive, in pixels")
    args = dict(recipe.model.args)
    if "img_size" in args:
        args["img_size"] = pixels
    return replace(
        recipe, data=replace(recipe.data, image_size=pixels), model=replace(recipe.model, args=args)
    )


def _checked_sizes(pixels: int, patch: int) -> dict[float, int]:
    """Factor -> pixels, where they divide into patches.

    Raises:
        UsageError: half the size does not.
    """
    if pixels % (2 * patch):
        raise UsageError(
            f"image_size={pixels}: half of it must divide into patches of {patch} pixels; choose "
            f"a multiple of {2 * patch}"
        )
    return {factor: int(factor * pixels) for factor in FACTORS if factor * pixels % patch == 0}


def _test_images(recipe: Recipe) -> Samples:
    parts, _ = open_parts(recipe.data)
    if "test" not in parts:
        raise UsageError(
            f"the data of recipe '{recipe.name}' have no test split, so there is nothing to "
            "compare: add one"
        )
    return parts["test"]


def _loaded(folder: Path, arm: Arm, device: str) -> LoadedRun:
    """A finished run, with the options that the arm sets for evaluation."""
    run = load_run(folder, device)
    if arm.trained_as:
        model: Any = run.model
        number = {N_TRAIN: _tokens(model, sides(run.image_size)[0])}
        for module in _scaled(run.model):
            module.options = {
                **module.options,
                **{name: number.get(value, value) for name, value in arm.options.items()},
            }
    return run


def _attention(model: nn.Module) -> Iterator[Attention]:
    return (module for module in model.modules() if isinstance(module, Attention))


def _scaled(model: nn.Module) -> Iterator[Attention | ClassAttention]:
    return (module for module in model.modules() if isinstance(module, Attention | ClassAttention))


def _measured(
    recipe: str,
    arm: Arm,
    seeds: Sequence[int],
    runs: Sequence[LoadedRun],
    test: Samples,
    pixels: Mapping[float, int],
) -> list[Point]:
    """The arm at every size: accuracies with their intervals over seeds and images, and its
    branch.
    """
    correct = {
        factor: np.stack([_right(run, test, size) for run in runs])
        for factor, size in pixels.items()
    }
    branches = {
        factor: np.concatenate([_branch(run, test, size) for run in runs])
        for factor, size in pixels.items()
    }
    model: Any = runs[0].model
    options = next(_attention(model)).options
    points = []
    for factor, size in pixels.items():
        share, moved = (
            bootstrap_mean(correct[factor]),
            paired_bootstrap(correct[factor], correct[1.0]),
        )
        points.append(
            Point(
                recipe=recipe,
                arm=arm.name,
                options=", ".join(f"{name}={value}" for name, value in options.items()),
                factor=factor,
                pixels=size,
                tokens=_tokens(model, size),
                seeds=" ".join(map(str, seeds)),
                images=correct[factor].shape[1],
                **{
                    name: round(value, 6)
                    for name, value in zip(("accuracy", "low", "high"), share, strict=True)
                },
                **{
                    name: round(value, 6)
                    for name, value in zip(
                        ("change", "change_low", "change_high"), moved, strict=True
                    )
                },
                branch=round(float(np.exp(np.log(branches[factor] / branches[1.0]).mean())), 6),
            )
        )
    return points


def _tokens(model: Any, pixels: int) -> int:
    """How many the attention over the patches sees; XCiT's class token comes later."""
    prefix = tokens_ahead(model) or 0
    return int((pixels // _patch(model)) ** 2 + prefix)


def _patch(model: Any) -> int:
    """Pixels along a side of a patch.

    Raises:
        UsageError: a pyramid, whose tokens are other ones in each stage.
    """
    embed = getattr(model, "patch_embed", None)
    if embed is None:
        raise UsageError(
            f"{type(model).__name__} has no one grid of patches: choose a recipe whose model is a "
            "ViT or an XCiT"
        )
    return int(embed.patch_size[0] if isinstance(embed.patch_size, tuple) else embed.patch_size)


def _at(run: LoadedRun, pixels: int) -> Any:
    data: DataSpec = run.recipe.data
    return eval_transform(
        pixels,
        data.crop_pct,
        data.interpolation,
        data.mean or (),
        data.std or (),
        run.in_chans,
        deep=run.scale is not None,
    )


def _right(run: LoadedRun, test: Samples, pixels: int) -> np.ndarray:
    batch = max(8, int(256 * (sides(run.image_size)[0] / pixels) ** 2))
    loader = eval_loader(test, _at(run, pixels), batch=batch)
    return evaluate(run, loader, label=f"{run.path.name} at {pixels} px").correct


@torch.no_grad()
def _branch(run: LoadedRun, test: Samples, pixels: int) -> np.ndarray:
    """(layers,) RMS of the output of each attention module, biases of its projection left out."""
    branch_rms: list[float] = []

    def note(module: Attention, _: Any, output: Tensor) -> None:
        branch = output if module.proj.bias is None else output - module.proj.bias
        branch_rms.append(float(branch.float().square().mean().sqrt()))

    hooks = [module.register_forward_hook(note) for module in _attention(run.model)]
    try:
        images, _ = next(iter(eval_loader(test, _at(run, pixels), batch=BRANCH_IMAGES)))
        run.model(images.to(next(run.model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return np.array(branch_rms)
