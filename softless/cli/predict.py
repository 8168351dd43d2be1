"""`softless predict`: what a run says of a folder of images, and pictures of it."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from softless.errors import UsageError, located


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
) -> Any:
    """Answer the images of folders, or of an npz file, with the best epoch of a run.

    A classifier writes `out/predictions.csv` (file, predicted class, probability of each class) and, with overlays,
    `out/saliency/NAME.png`: what the model saw with its query and key maps over it; the images are framed as in
    evaluation. In the table an apostrophe stands before a name that a spreadsheet would run as a formula. Every image is
    read before a file is written. One that cannot be read has no answer: it is named at the end, and the exit code is 4.
    A second call with the same `out` removes what the first left and it does not write itself. Where `out` lies
    inside the images, what is in it is left out.

    Args:
        run: the run's folder.
        images: a folder, searched with its sub-folders, an image, or an npz file (of
            classifiers); several folders and images after --images.
        out: a folder for the results, made if missing; not that of the images.
        overlays: draw the pictures too.
        device: auto, cpu, cuda, mps.
        batch_size: images at once of a classifier; by default as in training, at most 256.
        amp: what matrix products are computed in: none is float32. By default as the run was trained, and as `eval` measures it.
        page: which frame of a DICOM file that holds several, from 0 on.

    Raises:
        DataError: no images, or none that can be read.
        UsageError: `out` cannot be a folder or is that of the images, an npz file stands beside
            others, the run cannot be loaded, or its task gives no answers to images.
    """
    from softless.data.samples import FileSamples
    from softless.data.sources import images_of
    from softless.evaluation import load_run
    from softless.evaluation.evaluate import chosen_amp
    from softless.evaluation.run import DENSE
    from softless.prediction.answers import readable
    from softless.prediction.results import Results
    from softless.prediction.setting import Setting
    from softless.training.world import choose_device

    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: at least one image at once")
    place = choose_device(device)
    loaded = load_run(run, place)
    if loaded.task == "dino":
        raise UsageError(
            f"{loaded.path} learned features without labels, so it names nothing: see `softless eval --knn`"
        )
    setting = Setting(place, batch_size or loaded.batch_size, chosen_amp(amp, loaded))
    folder = located(out)
    samples = readable(images_of(images, loaded.in_chans, folder, loaded.scale, page))
    if loaded.task in DENSE and not isinstance(samples, FileSamples):
        raise UsageError(
            f"{loaded.path} is a run of {loaded.task}, which answers image files: give a folder, or images"
        )
    answer: Any = import_module(f"softless.prediction.{loaded.task}").predict
    with Results(folder, "predict", samples.paths()) as results:
        return answer(loaded, samples, results, setting, overlays=overlays)
