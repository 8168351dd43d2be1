"""A frozen model that makes features of tiles, by any name that the house opens."""

# B tiles, C channels, D width

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from softless.data.notices import notice
from softless.data.pictures import scaled
from softless.errors import DivergedError, UsageError
from softless.evaluation.features import as_it_is, output
from softless.evaluation.run import LoadedRun
from softless.experiment.groups import CLASSIFIES
from softless.experiment.ranges import Range
from softless.models.published import names_folder, published_folder
from softless.models.scale import foreign, other_resolution
from softless.models.weights import load_weights
from softless.saliency.viewer import Viewer, viewer_of
from softless.slides.prints import tensor_print
from softless.tasks.loaded import load_run
from softless.tasks.trained import created

Reading = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Encoder:
    """What makes features of tiles.

    Attributes:
        name: As bags call it.
        viewer: The model, and how its images are scaled.
        read: (B,C,h,w) -> (B,D).
        side: Pixels of the tiles that it takes.
        width: D.
        digest: Of the weights, of what is computed with them, and of how tiles are scaled.
    """

    name: str
    viewer: Viewer
    read: Reading
    side: int
    width: int
    digest: str

    @property
    def channels(self) -> int:
        return self.viewer.in_chans

    @property
    def scale(self) -> Range | None:
        """The declared range of the values that it was trained on."""
        return self.viewer.scale

    def features(self, tiles: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """(B,D) of tiles (h,w,C) of bytes, or of float32 in 0..1 where a range is declared; what a
        tile lacks at the right and the bottom is the mean colour.

        Raises:
            DivergedError: they are not finite.
        """
        model = self.viewer.model
        like = next(model.parameters())
        batch = torch.zeros(len(tiles), self.channels, self.side, self.side)
        mean, std = (torch.tensor(side)[:, None, None] for side in self._normalisation)
        for row, tile in zip(batch, tiles, strict=True):
            values = scaled(torch.from_numpy(np.array(tile)).permute(2, 0, 1))
            row[:, : tile.shape[0], : tile.shape[1]] = (values - mean) / std
        with torch.inference_mode():
            features = self.read(model, batch.to(like.device, like.dtype)).float().cpu()
        if not features.isfinite().all():
            raise DivergedError(
                f"the features of {self.name} are not finite: its weights diverged, or --dtype is "
                "too narrow for them"
            )
        return np.asarray(features.numpy(), dtype=np.float32)

    @property
    def _normalisation(self) -> tuple[list[float], list[float]]:
        return list(self.viewer.mean), list(self.viewer.std)


def encoder_of(
    name: str | nn.Module,
    side: int,
    *,
    weights: str | Path | None = None,
    mpp: float | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Encoder:
    """The model of a name, ready for tiles of a size.

    Args:
        name: The folder of a run or of `save_weights`, `local-dir:FOLDER`, the name of a model with
            the weights that timm knows, or a model.
        side: Pixels along a side of a tile.
        weights: A checkpoint for the name of a model, in place of timm's weights.
        mpp: Micrometres per pixel of the tiles, where they are known.
        device: Where to compute.
        dtype: What to compute in.

    Raises:
        UsageError: no such model, one that gives no features, or one that does not take such tiles.
        DataError: a folder or weights that are damaged.
    """
    called, viewer, read = _opened(name, weights)
    model = viewer.model.to(device or torch.device("cpu"), dtype).eval()
    for parameter in model.parameters():
        parameter.requires_grad = False
    width = _width(model, read, viewer.in_chans, side, called)
    far = foreign(model, side, side)
    if far is not None:
        notice(f"{called}: a tile has {far.image}, and in training an image had {far.trained}")
    if mpp is not None and (remark := other_resolution(model, (mpp, mpp))):
        notice(f"{called}: {remark}")
    return Encoder(called, viewer, read, side, width, _digest(viewer, read, dtype))


def _opened(name: str | nn.Module, weights: str | Path | None) -> tuple[str, Viewer, Reading]:
    if isinstance(name, nn.Module):
        return type(name).__name__, viewer_of(name), _reading(name)
    if names_folder(name):
        if weights is not None:
            raise UsageError(
                f"'{name}' is a run or a published model, whose weights are its own: --weights "
                "goes with the name of a model"
            )
        run = load_run(name)
        folder = published_folder(name) or run.path
        return folder.resolve().name, viewer_of(run), _reading_of(run)
    model: Any = created(str(name), weights is None, {})
    if weights is not None:
        for doubt in load_weights(model, weights, head="new").doubts():
            notice(f"{weights}: {doubt}")
    return str(name), viewer_of(model), _reading(model)


def _reading_of(run: LoadedRun) -> Reading:
    if run.task not in {*CLASSIFIES, "dino"}:
        raise UsageError(
            f"{run.path} is a run of {run.task}, and features of tiles are those ahead of a "
            "classifier: give the run of a classifier or of dino"
        )
    return as_it_is if run.task == "dino" else _reading(run.model)


def _reading(model: Any) -> Reading:
    if getattr(model, "num_classes", None) == 0:
        return as_it_is
    if not hasattr(model, "forward_head"):
        raise UsageError(
            f"{type(model).__name__} does not say what its head is given (forward_head, as timm's "
            "models have): give one without classes, or another"
        )
    return output


def _width(model: Any, read: Reading, channels: int, side: int, name: str) -> int:
    """D, by a look at an empty tile; a model of one size is brought to the tile's.

    Raises:
        UsageError: it takes no such tile.
    """
    like = next(model.parameters())
    blank = torch.zeros(1, channels, side, side, device=like.device, dtype=like.dtype)
    embedding = getattr(model, "patch_embed", None)
    own = getattr(embedding, "img_size", None)
    fixed = getattr(embedding, "strict_img_size", False) and not getattr(
        model, "dynamic_img_size", False
    )
    try:
        if fixed and own is not None and tuple(own) != (side, side):
            model.set_input_size((side, side))
            notice(
                f"{name} was trained on {own[1]} x {own[0]} pixels: its table of positions is "
                f"brought to tiles of {side} x {side}"
            )
        with torch.inference_mode():
            features = read(model, blank)
    except (AssertionError, ValueError, RuntimeError, AttributeError) as error:
        size = getattr(model, "pretrained_cfg", {}).get("input_size", (0, 0, 0))
        raise UsageError(
            f"{name} takes no tiles of {side} x {side} pixels ({_first_line(error)}): give "
            f"--tile {size[-1]}, or another encoder"
        ) from error
    if features.ndim != 2:
        raise UsageError(
            f"{name} gives features of shape {tuple(features.shape)} for a tile, and one row is "
            "needed: give another encoder"
        )
    return int(features.shape[1])


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _digest(viewer: Viewer, read: Reading, dtype: torch.dtype) -> str:
    digest = hashlib.sha256(repr(viewer.model).encode())
    for name, values in viewer.model.state_dict().items():
        digest.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode())
        digest.update(tensor_print(values).encode())
    scale = None if viewer.scale is None else viewer.scale.text
    facts = [list(viewer.mean), list(viewer.std), scale, read.__name__, str(dtype)]
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()
