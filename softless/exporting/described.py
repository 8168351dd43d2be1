"""What is recorded of a source, and what its file says of itself."""

import importlib.metadata
from dataclasses import replace

import torch
from torch import Tensor

from softless.exporting.dense.recorded import (
    is_dense,
)
from softless.exporting.dense.recorded import recording as dense_recording
from softless.exporting.edge import edge
from softless.exporting.formats.format import Format
from softless.exporting.graph import Graph
from softless.exporting.grid import free_step, grid_step
from softless.exporting.metadata import KEPT, Metadata, shareable
from softless.exporting.pixels import OfBytes
from softless.exporting.recording import Recording
from softless.exporting.request import Form, Images, Request
from softless.exporting.source import (
    Source,
    token_scale_of,
    weights_digest,
)


def recording_of(source: Source, record: Format, request: Request, images: Images) -> Recording:
    """What is recorded, its form, and why that is plain."""
    any_size = request.dynamic in {"size", "both"}
    several = request.dynamic in {"batch", "both"}
    if is_dense(source.model):
        made = dense_recording(
            source.model,
            images.compared,
            request.dynamic,
            request.form,
            several=several,
            cholesky=record.inverts,
        )
    else:
        form: Form = "plain" if any_size else request.form
        module = edge(source.model, request.size, form, batch=record.batch, images=images.steps)
        outputs = ("features",) if source.task == "dino" else ("logits",)
        step = free_step(source.model) if any_size else grid_step(source.model)
        example = images.compared[: 2 if several else 1]
        graph = Graph(module, example, outputs, request.dynamic, step)
        notes = () if module.inversion is None else (str(module.inversion),)
        made = Recording(graph, str(module.form), str(module.why), notes=notes)
    made = replace(
        made,
        graph=_without_images(made.graph),
        parts={name: _without_images(graph) for name, graph in made.parts.items()},
    )
    if request.pixels == "normalised":
        return made
    graph, number = made.graph, len(made.graph.example)
    taken = OfBytes(graph.module, source.best["mean"], source.best["std"], graph.example)
    return replace(
        made, graph=replace(graph, module=taken, example=_noise_like(images.pixels[:number]))
    )


def _without_images(graph: Graph) -> Graph:
    """A graph that is recorded with noise."""
    return replace(graph, example=_noise_like(graph.example))


def _noise_like(images: Tensor) -> Tensor:
    """Noise in the place of images (B, C, H, W): no image of anybody's is in a file, and some
    formats keep what a graph was recorded with.
    """
    generator = torch.Generator().manual_seed(0)
    if images.dtype == torch.uint8:
        return torch.randint(0, 256, images.shape, generator=generator, dtype=torch.uint8)
    return torch.randn(images.shape, generator=generator)


def metadata_of(source: Source, request: Request, recording: Recording) -> Metadata:
    """What the file of a recording says of itself, before it was audited and measured."""
    graph = recording.graph
    return Metadata(
        name=str(source.best["architecture"]),
        best={name: source.best[name] for name in KEPT if source.best.get(name) is not None},
        recipe=None if source.run is None else shareable(source.run.recipe),
        size=request.size,
        outputs=graph.outputs,
        form=recording.form,
        weights_sha256=weights_digest(source),
        versions={name: importlib.metadata.version(name) for name in ("softless", "torch")},
        batch=len(graph.example),
        dynamic=request.dynamic,
        step=graph.step,
        pixels=request.pixels,
        token_scale=token_scale_of(source.model),
        decoding=recording.decoding,
    )
