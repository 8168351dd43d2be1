"""`softless explain`: where the queries and keys of an attention layer are large, as pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softless import ranks
from softless.cli.sizes import as_size, as_token_scale
from softless.data.progress import track
from softless.data.sources import images_for_all
from softless.errors import located
from softless.exporting.names import refuse_file
from softless.models.durable import write_picture
from softless.models.scale import Foreign, set_token_scale
from softless.prediction.results import Results
from softless.saliency.figure import figure
from softless.saliency.maps import explain as look
from softless.saliency.overlay import picture
from softless.saliency.viewer import Viewer, eyes, viewer_of
from softless.tasks.opened import opened
from softless.training.sharing import see_one_folder, sharing

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pictures:
    """The pictures that were drawn, one per image."""

    folder: Path
    files: tuple[Path, ...]
    caption: str
    # images far from the training size
    foreign: Mapping[str, Foreign] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        far = {name: foreign.to_dict() for name, foreign in self.foreign.items()}
        return {"files": [str(file) for file in self.files], "maps": self.caption, "foreign": far}

    def __str__(self) -> str:
        if len(self.files) == 1:
            return f"{self.files[0]} ({self.caption})"
        return f"{len(self.files)} pictures in {self.folder} ({self.caption})"


def explain(
    model: str,
    images: str | Path | Sequence[str | Path],
    *,
    out: str | Path = "saliency",
    layer: int = -1,
    resize: str | None = None,
    token_scale: str | None = None,
    page: int = 0,
    device: str = "auto",
) -> Pictures:
    """Draw the query and key maps of images: of one, of folders, or of an npz file.

    One PNG per image: what the model sees, the l2 norm over channels of q^ and of k^ of each token
    of an attention layer, and the class token's signed row of the attention matrix where there is
    one. Runs of every task are taken; of a detector or a segmenter the host is looked at.
    softless.explain is the Python function. A second call with the same `out` removes the pictures
    of the first.

    Args:
        model: the folder of a run or of `save_weights`, or the name of a model (new weights: the
            maps then show an untrained network).
        images: an image file, a folder of them, searched with its sub-folders, or an npz file;
            several files and folders after --images.
        out: a folder for the pictures, made if missing.
        layer: which attention layer, counted from 0, or from the end when negative.
        resize: training (as many tokens as in training), or pixels of the longer side; without it
            what the run does in evaluation.
        token_scale: of SimA's attention: training (as strong at this size as at the training's),
            tokens, or a number.
        page: which frame of a DICOM file that holds several, from 0 on.
        device: auto, cpu, cuda, mps.

    Raises:
        UsageError: no such run, model or layer.
        DataError: no images, or one that cannot be read (its path is named).
    """
    refuse_file(model, "explain", "no attention layer is left in it, whose maps could be drawn")
    folder = located(out)
    arguments = {
        "model": model,
        "images": images,
        "out": out,
        "layer": layer,
        "resize": resize,
        "token_scale": token_scale,
    }
    with sharing(device, arguments | {"page": page}, folder) as world:
        viewer = world.together(lambda: _viewer(model, world.device, resize, token_scale))
        samples = images_for_all(images, viewer.in_chans, folder, viewer.scale, page)
        names = [samples.name(index) for index in range(len(samples))]
        see_one_folder(world, folder)
        with Results(folder, "explain", samples.paths()) as results:
            places = results.pictures(names)

            def drawn(index: int) -> tuple[str, Foreign | None]:
                image = viewer.transform(samples.image(index))[None].to(world.device)
                maps = look(viewer.model, image, layer=layer)
                _, model_image = eyes(viewer.model, image)
                title = f"{names[index]}: {maps.caption}"
                write_picture(
                    places[index],
                    figure(picture(model_image[0], viewer.mean, viewer.std), maps, title=title),
                )
                return maps.caption, maps.foreign

            mine = range(world.rank, len(names), world.size)
            drawings = list(
                ranks.everywhere(map(drawn, track(mine, len(mine), "drawing")), len(names))
            )
    far = {
        name: foreign
        for name, (_, foreign) in zip(names, drawings, strict=True)
        if foreign is not None
    }
    return Pictures(folder, tuple(places), drawings[-1][0], far)


def _viewer(
    model: str, device: "torch.device", resize: str | None, token_scale: str | None
) -> Viewer:
    """The model, and how it sees images."""
    viewer = viewer_of(opened(model, device))
    if token_scale is not None:
        set_token_scale(viewer.model, as_token_scale(token_scale))
    return viewer if resize is None else viewer.resized(as_size(resize))
