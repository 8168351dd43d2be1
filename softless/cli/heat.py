"""`softless heat`: what a model of bags says of each tile, laid over the slide."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softless.bags.bag import Bag
from softless.data.notices import notice
from softless.errors import UsageError, located, need, unknown
from softless.evaluation.run import LoadedRun
from softless.exporting.names import refuse_file
from softless.histology.heatmap import HeatMap
from softless.histology.placed import placed
from softless.histology.regions import collection
from softless.histology.scores import Kind, scores_of
from softless.models.durable import make_folder, write_picture, write_text
from softless.slides.lattice import Origin
from softless.slides.thumbnails import thumbnail
from softless.tasks.opened import opened
from softless.training.world import choose_device
from softless.words import aligned, visible

SCORES, OVERLAY, OUTLINES = "scores.h5", "overlay.png", "heat.geojson"
TOP = 5  # classes that are told
CLASS, SEVERAL, SURVIVAL = "class", "several", "survival"  # what a model of bags answers
RISK = "logarithm of the risk"
CHUNK = 2048
SIDE = 1280  # pixels of the overlay's longer side


@dataclass(frozen=True)
class Heat:
    """Scores of a slide's tiles, written.

    Attributes:
        slide: Its file.
        tiles: How many.
        classes: Probability by class, the largest first; of survival the logarithm of the risk.
        score: What the scores are.
        label: The class that evidence is for; empty of weights.
        out: The folder.
        map: The scores where they lie.
    """

    slide: str
    tiles: int
    classes: Mapping[str, float]
    score: str
    label: str
    out: Path
    map: HeatMap

    def to_dict(self) -> dict[str, Any]:
        return {
            "slide": self.slide,
            "tiles": self.tiles,
            "classes": dict(self.classes),
            "score": self.score,
            "label": self.label,
            "out": str(self.out),
            "files": [SCORES, OVERLAY, OUTLINES],
        }

    def __str__(self) -> str:
        lines = [f"{visible(self.slide)}: {self.tiles:,} tiles, {self.map.scores.caption}"]
        lines += aligned(
            (name, f"{value:.3f}" if name == RISK else f"{value:6.1%}")
            for name, value in list(self.classes.items())[:TOP]
        )
        return "\n".join([*lines, f"{self.out}: {SCORES}, {OVERLAY}, {OUTLINES}"])


def heat(
    run: nn.Module | LoadedRun | str | Path,
    slide: str | Path,
    *,
    out: str | Path,
    features: str | Path | None = None,
    score: Kind = "weight",
    label: str | None = None,
    origin: Origin = "slide",
    unit: str | None = None,
    tile: float | None = None,
    slide_mpp: float | None = None,
    chunk: int = CHUNK,
    device: str = "auto",
) -> Heat:
    """Score each tile of a slide by a model of bags, and lay the scores over the slide.

    Writes OUT/scores.h5 (scores and coords), OUT/overlay.png and OUT/heat.geojson for QuPath:
    regions of tiles of one class as annotations, and each tile with its score. Of more than 60,000
    tiles it holds squares of several. A weight says how much the pool looks at a tile, beside the
    mean weight of the slide's tiles; it does not say for which class.

    Args:
        run: the folder of a run of bags or of `save_weights`, or in Python a model of bags.
        slide: the slide, or an image.
        out: a folder for the results, made if missing.
        features: the features of the slide's tiles, as `softless tiles` or another tool wrote them;
            without it they are looked for among the run's data by the slide's name.
        score: weight is the pool's; gradient is gradient x input of a class's logit; leave-out is
            what that logit loses without the tile.
        label: the class that evidence is for; without it the one that is answered.
        origin: whose coordinates heat.geojson has: slide (the file's corner) or qupath (what
            QuPath shows, which leaves out what was not scanned).
        unit: of the coordinates, where the features do not say it: um or px0.
        tile: side of a tile in that unit, where they do not say it.
        slide_mpp: micrometres per pixel of level 0, where they do not say it.
        chunk: tiles worked on at once.
        device: auto, cpu, cuda, mps.

    Returns:
        The scores, and where they lie.

    Raises:
        UsageError: no such run, one that is no model of bags, a class that it does not know, or no
            features.
        CoordinateError: the features are of another slide, or do not say where their tiles lie.
        DataError: the slide or the features cannot be read.
        MissingExtra: h5py, shapely or what reads slides is not installed.

    Examples:
        >>> _ = softless.tiles("photos", encoder="runs/digits", tile=32, out="tiles", quiet=True)
        >>> model = softless.create_model("abmil_bag", in_dim=96)
        >>> heat = softless.heat(model, "photos/1.png", features="tiles/features/1.h5", out="heat")
        >>> sorted(path.name for path in Path("heat").iterdir())
        ['heat.geojson', 'overlay.png', 'scores.h5']
    """
    need("h5py", "shapely")
    if isinstance(run, str | Path):
        refuse_file(run, "heat", "its graph gives no scores of tiles")
    if chunk < 1:
        raise UsageError(f"--chunk {chunk}: at least one tile at once")
    slide_file = located(slide)
    source = opened(run, choose_device(device))
    model, classes = _of_bags(source)
    file = _features(source, slide_file) if features is None else located(features)
    bag = Bag.open(file, unit=unit, tile=tile, slide_mpp=slide_mpp)
    laid = placed(bag, slide_file, origin)
    if score == "weight" and label is not None:
        raise UsageError("a weight is for no class: leave --label out, or give --score gradient")
    number = None if label is None else _number(label, classes)
    scores = scores_of(model, bag, score, number, classes, chunk=chunk)
    drawn = HeatMap(scores, laid.places, laid.side, laid.step, laid.lattice)
    root = make_folder(located(out))
    answer = _answers(scores.logits, classes, getattr(model, "kind", CLASS))
    facts = {"slide": bag.slide, "encoder": bag.encoder, "mpp0": bag.mpp0}
    drawn.write_scores(root / SCORES, facts)
    title = slide_file.name
    if answer:
        first = next(iter(answer))
        said = f"{answer[first]:.2f}" if first == RISK else f"{answer[first]:.0%}"
        title = f"{title}: {first}, {said}"
    small = thumbnail(slide_file, side=SIDE)
    write_picture(root / OVERLAY, drawn.picture(small, title))
    write_text(root / OUTLINES, collection(drawn.features()))
    return Heat(str(slide), len(bag), answer, score, scores.label, root, drawn)


def _of_bags(source: nn.Module | LoadedRun) -> tuple[nn.Module, tuple[str, ...]]:
    """The model, and what its classes are called.

    Raises:
        UsageError: it is no model of bags.
    """
    run = source if isinstance(source, LoadedRun) else None
    model: Any = run.model if run else source
    if not hasattr(model, "tile_scores"):
        called = run.path if run else type(model).__name__
        raise UsageError(
            f"{called} looks at images, and softless heat scores the tiles of a bag: give a run of "
            "bags, or softless slide for a classifier of images"
        )
    if getattr(model, "kind", CLASS) == SURVIVAL:
        return model.eval(), ("risk",)
    return model.eval(), run.classes if run and run.named else ()


def _features(source: nn.Module | LoadedRun, slide: Path) -> Path:
    """The features of a slide among the data of its run.

    Raises:
        UsageError: there are none.
    """
    if isinstance(source, LoadedRun) and not source.stored and source.recipe.data.path:
        root = located(source.recipe.data.path)
        for file in (root / f"{slide.stem}.h5", root / "features" / f"{slide.stem}.h5"):
            if file.is_file():
                notice(f"the features of {slide.name} are those of {file}")
                return file
    raise UsageError(
        f"the tiles of {slide.name} need the features that the run was trained on: make them with "
        f"softless tiles {slide.name} --encoder … --mpp … --out bags, with the encoder and the "
        f"settings of the training, and give --features bags/features/{slide.stem}.h5"
    )


def _number(label: str, classes: tuple[str, ...]) -> int:
    if label in classes:
        return classes.index(label)
    if not classes and label.isdecimal():
        return int(label)
    if classes:
        raise unknown("class", label, classes)
    raise UsageError(f"--label {label}: the model does not name its classes, so give a number")


def _answers(logits: tuple[float, ...], classes: tuple[str, ...], kind: str) -> dict[str, float]:
    """Probabilities by class, the largest first: of one class they sum to 1, of several labels each
    stands alone. Of survival the logarithm of the risk.
    """
    if kind == SURVIVAL:
        return {RISK: logits[0]}
    names = classes or tuple(f"class {number}" for number in range(len(logits)))
    values = torch.tensor(logits, dtype=torch.float64)
    shares = (values.sigmoid() if kind == SEVERAL else values.softmax(0)).tolist()
    if kind != SEVERAL and len(shares) < 2:
        return {}
    return dict(sorted(zip(names, shares, strict=True), key=lambda entry: -entry[1]))
