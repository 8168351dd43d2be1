"""`softless explain`: where the queries and keys of an attention layer are large, as pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from softless.data.notices import notice
from softless.errors import UsageError


@dataclass(frozen=True)
class Pictures:
    """The pictures that were drawn, one per image."""

    folder: Path
    files: tuple[Path, ...]
    caption: str

    def to_dict(self) -> dict[str, Any]:
        return {"files": [str(file) for file in self.files], "maps": self.caption}

    def __str__(self) -> str:
        if len(self.files) == 1:
            return f"{self.files[0]} ({self.caption})"
        return f"{len(self.files)} pictures in {self.folder} ({self.caption})"


@dataclass(frozen=True)
class Viewer:
    """A model with what it needs to look at a file and to show what it saw."""

    model: nn.Module
    transform: Callable[[Any], Tensor]
    in_chans: int
    mean: Sequence[float]
    std: Sequence[float]


def explain(
    model: str, images: str | Path, *, out: str | Path = "saliency", layer: int = -1, device: str = "auto"
) -> Pictures:
    """Draw the query and key maps of one image or of a folder of images.

    One PNG per image: what the model sees, the l2 norm over channels of q^ and of k^ of each token of an attention layer, and the
    class token's signed row of the attention matrix where there is one. A second call with the same `out` removes the pictures of the first.

    Args:
        model: the folder of a run, or the name of a model (new weights: the maps then show an untrained network).
        images: an image file, or a folder of them, searched with its sub-folders.
        out: a folder for the pictures, made if missing.
        layer: which attention layer, counted from 0, or from the end when negative.
        device: auto, cpu, cuda, mps.

    Raises:
        UsageError: no such run, model or layer.
        DataError: no images, or one that cannot be read (its path is named).
    """
    from softless.data.folder import files_at
    from softless.data.images import read_image
    from softless.data.progress import track
    from softless.prediction.results import Results
    from softless.saliency import explain as look
    from softless.saliency import figure, picture
    from softless.training.world import choose_device

    folder = Path(out).expanduser()
    root, files = files_at(Path(images).expanduser(), apart=folder)
    viewer = _viewer(str(model), choose_device(device))
    drawn = []
    with Results(folder, "explain", [root / name for name in files]) as results:
        places = results.pictures(files)
        for name, place in track(zip(files, places, strict=True), len(files), "drawing"):
            seen = viewer.transform(read_image(root / name, viewer.in_chans))
            maps = look(viewer.model, seen, layer=layer)
            sheet = figure(picture(seen, viewer.mean, viewer.std), maps, title=f"{name}: {maps.caption}")
            drawn.append(_saved(sheet, place))
    return Pictures(folder, tuple(drawn), maps.caption)


def _viewer(name: str, device: torch.device) -> Viewer:
    if Path(name).expanduser().is_dir():
        from softless.evaluation import load_run

        run = load_run(name, device)
        return Viewer(run.model, run.transform, run.in_chans, run.best["mean"], run.best["std"])
    if "/" in name or name.startswith("."):
        raise UsageError(f"no run folder at {name}: give the --out folder of `softless train`, or the name of a model")
    return _untrained(name, device)


def _untrained(name: str, device: torch.device) -> Viewer:
    """A named model with new weights: of use to see the drawing, and said to be untrained."""
    import timm.data

    from softless.models import create_model
    from softless.saliency.maps import evaluation_transform

    torch.manual_seed(0)
    model = create_model(name).to(device).eval()
    notice(f"'{name}' is a model with new weights, not a trained run: its maps show an untrained network")
    config = timm.data.resolve_model_data_config(model)
    return Viewer(model, evaluation_transform(model), config["input_size"][0], config["mean"], config["std"])


def _saved(sheet: Image.Image, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    return path
