"""`softless predict`: what a run says of a folder of images, and pictures of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from softless.data.notices import notice
from softless.data.samples import FileSamples
from softless.data.sources import images_for_all
from softless.errors import UsageError, located
from softless.evaluation.run import LoadedRun
from softless.experiment.groups import DENSE
from softless.exporting.names import is_file
from softless.exporting.use import amp_for, check_sizes, device_for, run_or_file
from softless.prediction.answers import readable
from softless.prediction.results import Results
from softless.prediction.setting import Setting
from softless.ranks import shared
from softless.tasks.table import TABLE
from softless.training.sharing import see_one_folder, sharing

if TYPE_CHECKING:
    import torch


def predict(
    run: str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    overlays: bool = True,
    device: str = "auto",
    batch_size: int | None = None,
    amp: Literal["none", "bfloat16", "float16"] | None = None,
    page: int = 0,
    workers: int = 0,
    annotations: str | Path | None = None,
) -> Any:
    """Answer the images of folders, or of an npz file, with the best epoch of a run.

    A classifier writes `out/predictions.csv` (file, predicted class, probability of each class)
    and, with overlays, `out/saliency/NAME.png`: what the model saw with its query and key maps over
    it. The images are framed as in evaluation. In the table an apostrophe stands before a name that
    a spreadsheet would run as a formula. Every image is read before a file is written. One that
    cannot be read has no answer: it is named at the end, and the exit code is 4. A second call with
    the same `out` removes what the first left and it does not write itself. Where `out` lies inside
    the images, what is in it is left out. An exported file answers by what it says of itself; of a
    classifier's no maps are drawn, since no layer is left in it. A run of bags answers a folder of
    bags: `out/predictions.csv` has slide, class and probabilities.

    Args:
        run: the run's folder, a folder of `save_weights` or `local-dir:FOLDER`, or a file of
            `softless export`.
        images: a folder, searched with its sub-folders, an image, or an npz file (of
            classifiers); several folders and images after --images.
        out: a folder for the results, made if missing; not that of the images.
        overlays: draw the pictures too.
        device: auto, cpu, cuda, mps.
        batch_size: images at once of a classifier; by default as in training, at most 256.
        amp: what matrix products are computed in: none is float32. By default as the run was
            trained, and as `eval` measures it.
        page: which frame of a DICOM file that holds several, from 0 on.
        workers: processes that load images of a classifier; 0 loads in this one.
        annotations: COCO's json file of the images, whose ids a detector's answers keep, so that
            they can be scored against it.

    Returns:
        What was answered: the files written, counts, and images that could not be read.

    Raises:
        DataError: no images, or none that can be read.
        UsageError: `out` cannot be a folder or is that of the images, an npz file stands beside
            others, the run cannot be loaded, or its task gives no answers to images.

    Examples:
        >>> softless.predict("runs/digits", "photos", "answers").csv.name
        'predictions.csv'
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: at least one image at once")
    if workers < 0:
        raise UsageError(f"workers={workers}: 0 loads in this process, 1 or more in others")
    folder, device = located(out), device_for(run, device)
    arguments = {
        "run": run,
        "images": images,
        "out": out,
        "overlays": overlays,
        "batch_size": batch_size,
        "amp": amp,
    }
    with sharing(device, arguments | {"page": page, "annotations": annotations}, folder) as world:
        loaded, setting = world.together(
            lambda: _loaded(run, world.device, batch_size, amp, workers)
        )
        setting = replace(setting, annotations=annotations)
        answers: Any = TABLE[loaded.task].predict
        if not TABLE[loaded.task].task.of_images:
            bags = world.together(lambda: answers.opened(loaded, images))
            see_one_folder(world, folder)
            with Results(folder, "predict", bags.paths()) as results:
                return answers.predict(loaded, bags, results, setting, overlays=False)
        samples = readable(images_for_all(images, loaded.in_chans, folder, loaded.scale, page))
        if loaded.task in DENSE and not isinstance(samples, FileSamples):
            raise shared(
                UsageError(
                    f"{loaded.path} is a run of {loaded.task}, which answers image files: give a "
                    "folder, or images"
                )
            )
        if annotations is not None and loaded.task != "detection":
            raise shared(
                UsageError(
                    f"--annotations gives ids to the answers of a detector, and {loaded.path} is "
                    f"a run of {loaded.task}: "
                    "leave it out"
                )
            )
        world.together(lambda: check_sizes(loaded, samples))
        if overlays and is_file(run) and loaded.task not in DENSE:
            overlays = False
            notice(f"{loaded.path.name} holds no attention layers, so no saliency maps are drawn")
        see_one_folder(world, folder)
        with Results(folder, "predict", samples.paths()) as results:
            return answers.predict(loaded, samples, results, setting, overlays=overlays)


def _loaded(
    run: str | Path, device: "torch.device", batch_size: int | None, amp: str | None, workers: int
) -> tuple[LoadedRun, Setting]:
    """The run, and how it answers."""
    loaded = run_or_file(run, device)
    if loaded.task == "dino":
        raise UsageError(
            f"{loaded.path} learned features without labels, so it names nothing: see `softless "
            "eval --knn`"
        )
    if TABLE[loaded.task].predict is None:
        raise UsageError(f"{loaded.path} is a run of {loaded.task}, which answers no images")
    return loaded, Setting(device, batch_size or loaded.batch_size, amp_for(amp, loaded), workers)
