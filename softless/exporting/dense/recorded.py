"""What is recorded of a detector or a segmenter, and the images it is compared on."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless.data.samples import Samples
from softless.data.transforms import Pipeline
from softless.errors import UsageError
from softless.exporting.dense.decoding import MASKS, parameters_of
from softless.exporting.dense.maps import DetectorMaps, OnGrid, Stepped, later_stages
from softless.exporting.forms.steps import chosen, inverts
from softless.exporting.graph import Dynamic, Graph
from softless.exporting.grid import free_step
from softless.exporting.recording import Recording
from softless.models.features import pad
from softless.tasks.detection.model import Detector
from softless.tasks.segmentation.model import Segmenter

REGIONS = "regions"  # the name of the input of a second stage
PLAIN = "detectors and segmenters have no edge form yet"


def is_dense(model: nn.Module) -> bool:
    """Whether a model answers images with boxes, masks or the class of each pixel."""
    return isinstance(model, Detector | Segmenter)


def recording(
    model: Any,
    images: Tensor,
    dynamic: Dynamic | None,
    form: str,
    *,
    several: bool,
    cholesky: bool,
) -> Recording:
    """What is recorded of a detector or a segmenter.

    Args:
        model: the detector or segmenter; it is copied.
        images: (B, C, h, w), as the graph sees them.
        dynamic: what is free.
        form: edge, plain or auto.
        several: whether the example has two images.
        cholesky: whether the format holds SOFT's inverse as the model takes it.

    Raises:
        UsageError: Newton's steps, which stand for it elsewhere, do not invert on these images.
    """
    any_size = dynamic in {"size", "both"}
    own = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    example = images[: 2 if several else 1]
    why = PLAIN if form == "auto" else ""
    step = step_of(own) if any_size else 1
    if isinstance(own, Segmenter):
        module: nn.Module = OnGrid(own) if any_size else own
        module, notes = (module, ()) if cholesky else _stepped(module, images)
        graph = Graph(module, example, ("logits",), dynamic, step)
        decoding = {"divisor": own.divisor, "values": list(own.values)}
        return Recording(graph, "plain", why, decoding, notes=notes)
    maps = DetectorMaps(own, pads=not any_size)
    module, notes = (maps, ()) if cholesky else _stepped(maps, images)
    graph = Graph(module, example, maps.outputs, dynamic, step)
    decoding = parameters_of(own)
    stages = later_stages(own)
    parts: dict[str, Graph] = {}
    if stages:
        heads: Any = own.net.roi_heads
        with torch.no_grad():
            pyramid = maps(example[:1])[-1]
        for name, stage in stages.items():
            pool = heads.mask_roi_pool if name == MASKS else heads.box_roi_pool
            outputs: tuple[str, ...] = stage.outputs  # type: ignore[assignment]
            regions = sampled(pyramid, pool.output_size[0])
            parts[name] = Graph(stage.eval(), regions, outputs, "batch", takes=REGIONS)
    return Recording(graph, "plain", why, decoding, parts, notes)


def _stepped(module: nn.Module, images: Tensor) -> tuple[nn.Module, tuple[str, ...]]:
    """A module in as many of Newton's steps as these images need, and what that costs, in words."""
    if not inverts(module):
        return module, ()
    try:
        steps = chosen(module, images)
    except UsageError as error:
        raise UsageError(f"{error}; --format pt2 holds the model's own inverse") from error
    return Stepped(module, steps.steps), (str(steps),)


def sampled(map_: Tensor, side: int) -> Tensor:
    """Regions (2, C, S, S) that a map (1, C, h, w) holds: the whole of it, and its middle."""
    height, width = map_.shape[-2:]
    middle = map_[..., height // 4 : height - height // 4, width // 4 : width - width // 4]
    return torch.cat([
        F.interpolate(part, size=(side, side), mode="bilinear", align_corners=False)
        for part in (map_, middle)
    ])


def step_of(model: Any) -> int:
    """Pixels that both sides of a graph of any size are multiples of."""
    divisor = (
        model.divisor if isinstance(model, Segmenter) else int(model.net.transform.size_divisible)
    )
    return max(int(divisor), free_step(model.host))


def on_grid(model: Any, size: tuple[int, int]) -> tuple[int, int]:
    """The size (height, width) that a graph of any size takes for images of this one."""
    step = step_of(model)
    return size[0] + -size[0] % step, size[1] + -size[1] % step


def reference_of(model: Any, *, any_size: bool) -> nn.Module:
    """What the file of a detector or segmenter is held against: the model's own layers."""
    if isinstance(model, Segmenter):
        return OnGrid(model) if any_size else model
    return DetectorMaps(model, pads=not any_size)


def later_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the graphs behind the first of a detector's two stages."""
    return tuple(later_stages(model)) if isinstance(model, Detector) else ()


def seen_by(model: Any, image: Tensor, *, any_size: bool) -> Tensor:
    """A prepared image (C, h, w) as the graph takes it: (1, C, h', w')."""
    if isinstance(model, Segmenter):
        return model.framed(image[None]) if any_size else image[None]
    resized = model.net.transform.resize(image)[0][None]
    return pad(resized, int(model.net.transform.size_divisible)) if any_size else resized


def compared_images(
    model: Any,
    samples: Samples | None,
    transform: Pipeline,
    size: tuple[int, int],
    most: int,
    *,
    any_size: bool,
    as_they_are: bool,
) -> Tensor | None:
    """Images (B, C, h, w) of one size as the graph takes them; None where none has it.

    Args:
        model: the detector or segmenter.
        samples: images; None for none.
        transform: how the model takes one.
        size: height and width that the graph takes.
        most: how many at most.
        any_size: whether the graph takes any size.
        as_they_are: only those that are neither resized nor filled up.
    """
    chosen: list[Tensor] = []
    for index in range(0 if samples is None else len(samples)):
        assert samples is not None
        image: Tensor = transform(samples.image(index))
        seen = seen_by(model, image, any_size=any_size)
        if tuple(seen.shape[-2:]) != size:
            continue
        if not as_they_are or seen.shape[-2:] == image.shape[-2:]:
            chosen.append(seen)
        if len(chosen) == most:
            break
    return torch.cat(chosen) if chosen else None
