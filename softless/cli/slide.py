"""`softless slide`: what a model says of slides and other large images, each looked at as a
whole.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn

from softless import ranks
from softless.cli.output import plain
from softless.cli.sizes import as_channels, as_mpp, as_size, as_token_scale
from softless.data.notices import notice
from softless.errors import DataError, SoftlessError, UsageError, located
from softless.exporting.names import refuse_file
from softless.inference.optimize import optimize
from softless.models.create import create_model
from softless.models.durable import make_folder, remove_empty, write_picture, write_text
from softless.models.published import names_folder
from softless.models.scale import set_token_scale, trained_as_configured
from softless.models.weights import load_weights
from softless.prediction.results import writable
from softless.saliency.viewer import declared, normalisation
from softless.slides.files import Choice
from softless.slides.lattice import Origin
from softless.slides.maps import maps_of, save_maps
from softless.slides.masks import OUTLINES, PICTURES
from softless.slides.pictures import sheet
from softless.slides.stream import CHUNK, StreamResult, Tissue, stream
from softless.slides.thumbnails import LARGE, thumbnail
from softless.tasks.loaded import load_run
from softless.training.sharing import see_one_folder, sharing
from softless.words import aligned, table, visible

TOP = 5  # classes that are told of one image
RESULT, SHEET, SUMMARY = "result.json", "saliency.png", "summary.json"


@dataclass(frozen=True)
class Answer:
    """What became of one image."""

    image: str
    folder: Path | None
    classes: Mapping[str, float]  # probability by class, the largest first
    result: StreamResult | None
    failed: str = ""  # why there is no result
    counts: str | None = None  # what said which patches count: a file, or otsu
    files: tuple[str, ...] = ()  # in its folder, beside the result

    @property
    def note(self) -> str:
        """What is wrong with it, in words."""
        if self.result is None:
            return self.failed
        bad = len(self.result.unreadable)
        return (
            f"{bad} tile{'s' if bad > 1 else ''} could not be read and did not count" if bad else ""
        )

    def light(self) -> "Answer":
        """Without what is as large as the image: that is written already, and other ranks need none
        of it.
        """
        assert self.result is not None
        return replace(
            self,
            result=replace(
                self.result, features=torch.empty(0), saliency=None, tokens=None, mask=None
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        if self.result is None:
            return {"image": self.image, "failed": self.failed}
        result = self.result
        return {
            "image": self.image,
            "classes": dict(self.classes),
            "logits": result.logits[0].float().tolist(),
            "size": result.size,
            "grid": result.grid,
            "patch": result.patch,
            "level": result.level,
            "mpp": result.mpp,
            "scale": result.scale,
            "origin": result.origin,
            "bounds": result.bounds,
            "remarks": result.remarks,
            "tokens": result.counted,
            "mask": self.counts,
            "foreign": None if result.foreign is None else result.foreign.to_dict(),
            "unreadable": [vars(tile) for tile in result.unreadable],
            "seconds": round(result.seconds, 3),
            "folder": None if self.folder is None else str(self.folder),
            "files": self.files,
        }


@dataclass(frozen=True)
class Slides:
    """What became of all of them."""

    answers: tuple[Answer, ...]
    out: Path

    @property
    def exit_code(self) -> int:
        """4 where an image failed, or a tile of one could not be read."""
        return 4 if any(answer.note for answer in self.answers) else 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "images": [answer.to_dict() for answer in self.answers],
            "out": str(self.out),
            "exit_code": self.exit_code,
        }

    def __str__(self) -> str:
        if len(self.answers) == 1 and self.answers[0].result is not None:
            return self._of_single(self.answers[0], self.answers[0].result)
        cells = [self._cells(answer) for answer in self.answers]
        heads = ["image", "pixels", "tokens", "says", "", "seconds", ""]
        return f"{table(heads, cells)}\n\nresults, maps and pictures: {self.out}"

    def _of_single(self, answer: Answer, result: StreamResult) -> str:
        lines = [
            (
                f"{visible(answer.image)}: {result.size[1]:,} x {result.size[0]:,} pixels, "
                f"{result.counted:,} tokens, {result.seconds:.1f} s"
            )
        ]
        lines += aligned(
            (name, f"{share:6.1%}") for name, share in list(answer.classes.items())[:TOP]
        )
        files = f"{answer.folder}: {', '.join([RESULT, *answer.files])}"
        return "\n".join([*lines, *([answer.note] if answer.note else []), files])

    @staticmethod
    def _cells(answer: Answer) -> list[str]:
        result = answer.result
        if result is None:
            return [answer.image, "", "", "", "", "", f"failed: {answer.failed}"]
        name, share = next(iter(answer.classes.items()))
        size = f"{result.size[1]:,} x {result.size[0]:,}"
        return [
            answer.image,
            size,
            f"{result.counted:,}",
            name,
            f"{share:.1%}",
            f"{result.seconds:.1f}",
            answer.note,
        ]


def slide(
    model: str,
    *images: str,
    out: str | Path = "slides",
    op: str | None = None,
    weights: str | Path | None = None,
    level: int = 0,
    mpp: str | None = None,
    slide_mpp: float | None = None,
    channels: str | None = None,
    page: int | None = None,
    resize: str | None = None,
    token_scale: str | None = None,
    mask: str | Path | None = None,
    tissue: Tissue = "none",
    origin: Origin = "slide",
    chunk: int = CHUNK,
    store: str | Path | None = None,
    pictures: bool = True,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
    quiet: bool = False,
) -> Slides:
    """Look at slides, or other images of any size, as wholes: exact attention over all their
    tokens, in memory bounded by a chunk.

    Writes into OUT/NAME for each image result.json (classes, tiles that could not be read, sizes),
    the maps as arrays (.npy), as pictures (saliency.png, overlay.png) and as polygons for QuPath
    (saliency.geojson), and OUT/summary.json. An image that fails does not stop the others. The exit
    code is 4 where one failed or a tile of one could not be read. softless.stream is the Python
    function.

    Args:
        model: the folder of a run, or the name of a model.
        images: image files, tiled TIFF or slides (SVS, NDPI, MRXS, …); a slide is read region by
            region.
        out: a folder for the results, made if missing.
        op: operator for a host (`--op sima` with a timm ViT).
        weights: a checkpoint for the name of a model; without it the weights are new, and said to
            be.
        level: of a slide, 0 the finest.
        mpp: micrometres per pixel to look with, in place of a level; training is what the run's
            training images had.
        slide_mpp: micrometres per pixel of level 0, for files that do not say; an error for one
            that says another.
        channels: which 1 or 3 channels of a TIFF to look at, from 0 on, for example 0,1,2.
        page: which picture of a TIFF that holds several, or which plane of a stack, from 0 on.
        resize: training (as many tokens as in training), or pixels of the longer side; without it
            images keep their size.
        token_scale: of SimA's attention: training (as strong at this size as at the training's),
            tokens, or a number.
        mask: which patches count: a PNG of two values (0 does not), polygons as GeoJSON, or a
            folder with one of them for each image, named as it is.
        tissue: otsu lets count what is stained, by Otsu's threshold on saturation; none looks at
            all of it.
        origin: whose coordinates GeoJSON has, coming in and going out: slide (the file's corner) or
            qupath (what QuPath shows, which leaves out what was not scanned).
        chunk: tokens worked on at once.
        store: a folder for what is too large for the memory; a run that was killed goes on there.
        pictures: draw and write the maps.
        dtype: float32 or bfloat16.
        device: auto, cpu, cuda, mps.
        quiet: no progress line.

    Returns:
        The answer for each image.

    Raises:
        UsageError: no such model, one that cannot be streamed, or options that do not fit; the
            error of the only image, or of all.
        DataError: the only image, or every one, cannot be read; exit code 1 where a slide opens and
            none of its tiles can be read.

    Examples:
        >>> slides = softless.slide("runs/digits", "photos/0.png", out="slides", quiet=True)
        >>> sorted(path.name for path in Path("slides/0.png").glob("*.json"))
        ['result.json']
    """
    if not images:
        raise UsageError("softless slide MODEL IMAGE …: name one image or more")
    for image in images:
        located(image)
    masks = None if mask is None else _Masks(mask, alone=len(images) == 1)
    scale = None if token_scale is None else as_token_scale(token_scale)
    size = None if resize is None else as_size(resize)
    chosen = None if channels is None else as_channels(channels)
    options: dict[str, Any] = {
        "level": level,
        "mpp": None if mpp is None else as_mpp(mpp),
        "slide_mpp": slide_mpp,
        "channels": chosen,
        "page": page,
        "resize": size,
        "tissue": tissue,
        "origin": origin,
        "chunk": chunk,
        "saliency": pictures,
        "quiet": quiet,
    }
    root = located(out)
    arguments = {
        "model": model,
        "images": images,
        "out": out,
        "op": op,
        "weights": weights,
        "mask": mask,
        "store": store,
    }
    with sharing(
        device, {**arguments, **options, "token_scale": token_scale, "dtype": dtype}, root
    ) as world:
        looker = world.together(
            lambda: _looker(model, op, weights, world.device, getattr(torch, dtype), scale)
        )
        new = world.first(lambda: not root.exists())
        see_one_folder(world, root)
        make_folder(root)
        names = _names(images)

        def looked(number: int) -> Answer | SoftlessError:
            """The answer, its files written; or why there is none."""
            image, name = images[number], names[number]
            store_folder = None if store is None else located(store) / name
            try:
                mine = None if masks is None else masks.of(image)
                result = stream(
                    looker.model,
                    image,
                    store=store_folder,
                    mask=mine,
                    mean=looker.mean,
                    std=looker.std,
                    **options,
                )
                choice = Choice(chosen, page, declared(looker.model))
                drawn = (
                    thumbnail(image, level=level, side=LARGE, choice=choice) if pictures else None
                )
                counts = str(mine) if mine is not None else None if tissue == "none" else tissue
                answer = _written(image, root / name, looker, result, drawn, origin, counts)
            except SoftlessError as error:
                return error
            return answer if world.size == 1 else answer.light()

        outcomes = ranks.interleaved(
            world.gather([looked(number) for number in range(world.rank, len(images), world.size)])
        )
        errors = [outcome for outcome in outcomes if isinstance(outcome, SoftlessError)]
        if len(errors) == len(images):
            if new and world.is_first:
                remove_empty(root)
            raise ranks.shared(errors[0])
        slides = Slides(tuple(map(_answer, images, outcomes)), root)
        world.first(lambda: _write(root / SUMMARY, slides))
        return slides


def _answer(image: str, outcome: Answer | SoftlessError) -> Answer:
    """What became of an image, also where there is no result."""
    return (
        outcome
        if isinstance(outcome, Answer)
        else Answer(image, None, {}, None, " ".join(str(outcome).split()))
    )


@dataclass(frozen=True)
class Looker:
    """A model, what its classes are called, and how its images are normalised."""

    model: nn.Module
    classes: Sequence[str] | None
    mean: Sequence[float]
    std: Sequence[float]


def _looker(
    name: str,
    op: str | None,
    weights: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
    scale: str | float | None,
) -> Looker:
    refuse_file(name, "slide", "a graph cannot be cut into the passes over a slide")
    if names_folder(name):
        if op is not None or weights is not None:
            raise UsageError(
                f"'{name}' is a run or a published model: its operator and weights are its own; "
                "--op and --weights go "
                "with the name of a model"
            )
        run = load_run(name, device)
        if run.task != "classification":
            raise UsageError(
                f"'{name}' is a run of {run.task}, and slides are classified: give the run of a "
                "classifier"
            )
        return Looker(
            _ready(run.model, device, dtype, scale),
            run.classes if run.named else None,
            run.best["mean"],
            run.best["std"],
        )
    torch.manual_seed(0)
    model = create_model(name, op=op).eval()
    if weights is not None:
        for doubt in load_weights(model, weights).doubts():
            notice(f"{weights}: {doubt}")
        trained_as_configured(model)
    else:
        notice(
            f"'{name}' is a model with new weights, not a trained one: give --weights, or the "
            "folder of a run"
        )
    return Looker(_ready(model, device, dtype, scale), None, *normalisation(model))


def _ready(
    model: nn.Module, device: torch.device, dtype: torch.dtype, scale: str | float | None
) -> nn.Module:
    """In a dtype on a device; on the processor as `softless.optimize` prepares it, which gives the
    same answers sooner.
    """
    if scale is not None:
        set_token_scale(model, scale)
    return optimize(model, dtype) if device.type == "cpu" else model.to(device, dtype)


def _names(images: Sequence[str]) -> list[str]:
    """A folder's name for each image: its file's, numbered where two have the same."""
    names: list[str] = []
    for image in images:
        base = writable(Path(image).name)
        count = sum(name == base or name.startswith(f"{base}-") for name in names)
        names.append(f"{base}-{count + 1}" if count else base)
    return names


class _Masks:
    """A file that says what counts, or a folder with one for each image.

    Raises:
        UsageError: one file for several images.
    """

    def __init__(self, mask: str | Path, *, alone: bool) -> None:
        self.masks_path = located(mask)
        if not (alone or self.masks_path.is_dir()):
            raise UsageError(
                f"--mask {mask} is one file, and there are several images: give a folder that "
                "holds a mask for each, "
                "named as the image is"
            )

    def of(self, image: str) -> Path:
        """The mask of an image.

        Raises:
            DataError: the folder has none, or two.
        """
        if not self.masks_path.is_dir():
            return self.masks_path
        path = Path(image)
        ends = [
            f"{name}{ending}" for name in {path.name, path.stem} for ending in PICTURES | OUTLINES
        ]
        matching = sorted(end for end in ends if (self.masks_path / end).is_file())
        if len(matching) != 1:
            raise DataError(
                f"{self.masks_path} holds {' and '.join(matching) or 'no mask'} for {path.name}: "
                "keep one there, "
                f"{path.stem}.png or {path.stem}.geojson"
            )
        return self.masks_path / matching[0]


def _written(
    image: str,
    folder: Path,
    looker: Looker,
    result: StreamResult,
    small: Image.Image | None,
    origin: Origin,
    counts: str | None,
) -> Answer:

    if not result.logits.isfinite().all():
        raise UsageError(
            f"the model's output is not finite for {image}: its weights are of no use, or its "
            "dtype is too narrow for them"
        )
    shares = result.logits[0].double().softmax(0).tolist()
    names = looker.classes or [f"class {number}" for number in range(len(shares))]
    classes = dict(sorted(zip(names, shares, strict=True), key=lambda entry: -entry[1]))
    make_folder(folder)
    files: tuple[str, ...] = ()
    if small is not None:
        first = next(iter(classes))
        title = f"{Path(image).name}: {first}, {classes[first]:.0%}"
        write_picture(folder / SHEET, sheet(small, result, title))
        saved = save_maps(maps_of(result, origin), small, folder, title=title)
        files = (SHEET, *(file.name for file in saved))
    answer = Answer(image, folder, classes, result, counts=counts, files=files)
    _write(folder / RESULT, answer)
    return answer


def _write(path: Path, content: Answer | Slides) -> None:
    write_text(path, json.dumps(plain(content), indent=1) + "\n")
