"""`softless predict`: what a run says of a folder of images, and pictures of it."""

from importlib import import_module
from pathlib import Path
from typing import Any

from softless.errors import UsageError


def predict(
    run: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    overlays: bool = True,
    device: str = "auto",
    batch_size: int = 64,
) -> Any:
    """Answer the images of a folder with the best epoch of a run.

    A classifier writes `out/predictions.csv` (file, predicted class, probability of each class) and, with overlays,
    `out/saliency/FILE.png`: what the model saw with its query and key maps over it; the images are framed as in
    evaluation. Every image is read before a file is written, so an unreadable one leaves nothing half done.

    Args:
        run: the run's folder.
        images: a folder, searched with its sub-folders, or one image.
        out: a folder for the results, made if missing.
        overlays: draw the pictures too.
        device: auto, cpu, cuda, mps.
        batch_size: images at once.

    Raises:
        DataError: no images, or one that cannot be read (its path is named).
        UsageError: `out` cannot be a folder, the run cannot be loaded, or its task gives no answers to images.
    """
    from softless.data.folder import images_at
    from softless.evaluation import load_run
    from softless.training.world import choose_device

    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: at least one image at once")
    place = choose_device(device)
    loaded = load_run(run, place)
    if loaded.task == "dino":
        raise UsageError(
            f"{loaded.path} learned features without labels, so it names nothing: see `softless eval --knn`"
        )
    samples = images_at(Path(images).expanduser(), loaded.in_chans)
    folder = _made(Path(out).expanduser())
    answer: Any = import_module(f"softless.prediction.{loaded.task}").predict
    return answer(loaded, samples, folder, overlays=overlays, device=place, batch_size=batch_size)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder} for the results: {error.strerror}") from error
    return folder
