"""What makes boxes of a detector's maps: parameters that its file keeps, and the decoding itself.

RetinaNet: Lin et al., arXiv:1708.02002. Faster and Mask R-CNN: arXiv:1506.01497, arXiv:1703.06870.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torchvision.models.detection import RetinaNet

from softless.exporting.dense import boxes as shapes
from softless.exporting.dense.regions import pieces
from softless.tasks.detection.model import Detector

LEVELS = 5  # maps of the pyramid that a head looks at
READ = 4  # of them, those that regions are read from
KEYS = frozenset({  # of the parameters, of every detector
    "head",
    "divisor",
    "resize",
    "longest",
    "categories",
    "parts",
    "cells",
    "weights",
    "most",
    "min_score",
    "overlap",
    "detections",
})
OF_HEAD = {  # and of each kind
    "retinanet": frozenset({"candidates"}),
    "rcnn": frozenset({"first", "side", "samples", "mask_side"}),
}
BOXES, MASKS = "boxes", "masks"  # the graphs behind the first of two stages

# regions (R, C, S, S) -> outputs of a graph
Graph = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Boxes:
    """Answers for one image: corners (n, 4) in its pixels, labels (n,) from 0, scores (n,), the
    best first, and of Mask R-CNN probabilities (n, S, S) within each box.
    """

    corners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None = None


def parameters_of(model: Detector) -> dict[str, Any]:
    """What `decoded` needs to know of a detector, of JSON's types."""
    net, sizes = model.net, model.net.transform
    common = {
        "head": "retinanet" if isinstance(net, RetinaNet) else "rcnn",
        "divisor": int(sizes.size_divisible),
        "resize": None if sizes.as_given else int(sizes.min_size[-1]),
        "longest": int(sizes.max_size),
        "categories": list(model.categories),
        "parts": [],
    }
    if isinstance(net, RetinaNet):
        coder = net.box_coder
        return common | {
            "cells": [cell.tolist() for cell in net.anchor_generator.cell_anchors],
            "weights": list(coder.weights),
            "most": coder.bbox_xform_clip,
            "min_score": net.score_thresh,
            "candidates": net.topk_candidates,
            "overlap": net.nms_thresh,
            "detections": net.detections_per_img,
        }
    rpn, heads = net.rpn, net.roi_heads
    return common | {
        "parts": [BOXES, MASKS] if heads.has_mask() else [BOXES],
        "cells": [cell.tolist() for cell in rpn.anchor_generator.cell_anchors],
        "first": {
            "weights": list(rpn.box_coder.weights),
            "most": rpn.box_coder.bbox_xform_clip,
            "min_score": rpn.score_thresh,
            "min_side": rpn.min_size,
            "candidates": rpn._pre_nms_top_n["testing"],
            "overlap": rpn.nms_thresh,
            "proposals": rpn._post_nms_top_n["testing"],
        },
        "weights": list(heads.box_coder.weights),
        "most": heads.box_coder.bbox_xform_clip,
        "min_score": heads.score_thresh,
        "overlap": heads.nms_thresh,
        "detections": heads.detections_per_img,
        "side": heads.box_roi_pool.output_size[0],
        "samples": heads.box_roi_pool.sampling_ratio,
        "mask_side": heads.mask_roi_pool.output_size[0] if heads.has_mask() else None,
    }


def decoded(
    maps: Sequence[np.ndarray],
    size: tuple[int, int],
    canvas: tuple[int, int],
    parameters: Mapping[str, Any],
    graphs: Mapping[str, Graph],
) -> Boxes:
    """Boxes of one image.

    Args:
        maps: of five levels the scores (A K, h, w), of five the offsets (4 A, h, w), and of two
            stages four of the pyramid (C, h, w).
        size: height and width of the image in pixels.
        canvas: the same once it is filled up.
        parameters: of `parameters_of`.
        graphs: of two stages those behind the first, by name.
    """
    scores, offsets = maps[:LEVELS], maps[LEVELS : 2 * LEVELS]
    anchors = [
        shapes.anchors_of(np.asarray(cell, dtype=np.float32), map_.shape[-2:], canvas)
        for cell, map_ in zip(parameters["cells"], scores, strict=True)
    ]
    if parameters["head"] == "retinanet":
        return _one_stage(scores, offsets, anchors, size, parameters)
    regions = _proposals(scores, offsets, anchors, size, parameters["first"])
    return _two_stages(maps[2 * LEVELS :], regions, size, parameters, graphs)


def _one_stage(
    scores: Sequence[np.ndarray],
    offsets: Sequence[np.ndarray],
    anchors: Sequence[np.ndarray],
    size: tuple[int, int],
    parameters: Mapping[str, Any],
) -> Boxes:
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for level_scores, level_offsets, level_anchors in zip(scores, offsets, anchors, strict=True):
        per_cell = len(level_anchors) // (level_scores.shape[-2] * level_scores.shape[-1])
        classes = level_scores.shape[0] // per_cell
        shares = shapes.chances(shapes.listed(level_scores, classes)).reshape(-1)
        likely = np.flatnonzero(shares > np.float32(parameters["min_score"]))
        likely = likely[shapes.falling(shares[likely], parameters["candidates"])]
        rows, labels = likely // classes, likely % classes
        corners = shapes.moved(
            shapes.listed(level_offsets, 4)[rows],
            level_anchors[rows],
            parameters["weights"],
            parameters["most"],
        )[:, 0]
        parts.append((shapes.clipped(corners, size), shares[likely], labels))
    corners, shares, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    best = shapes.kept(corners, shares, labels, parameters["overlap"])[: parameters["detections"]]
    return Boxes(corners[best], labels[best], shares[best])


def _proposals(
    scores: Sequence[np.ndarray],
    offsets: Sequence[np.ndarray],
    anchors: Sequence[np.ndarray],
    size: tuple[int, int],
    first: Mapping[str, Any],
) -> np.ndarray:
    """Regions (R, 4) of an image that may hold something, the likeliest first."""
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for level, level_anchors in enumerate(anchors):
        logits = shapes.listed(scores[level], 1)[:, 0]
        rows = shapes.falling(logits, first["candidates"])
        corners = shapes.moved(
            shapes.listed(offsets[level], 4)[rows],
            level_anchors[rows],
            first["weights"],
            first["most"],
        )[:, 0]
        groups = np.full(len(rows), level, dtype=np.int64)
        parts.append((shapes.clipped(corners, size), shapes.chances(logits[rows]), groups))
    corners, shares, groups = (np.concatenate(part) for part in zip(*parts, strict=True))
    stays = shapes.large(corners, first["min_side"]) & (shares >= np.float32(first["min_score"]))
    corners, shares, groups = corners[stays], shares[stays], groups[stays]
    return corners[shapes.kept(corners, shares, groups, first["overlap"])[: first["proposals"]]]


def _two_stages(
    maps: Sequence[np.ndarray],
    regions: np.ndarray,
    size: tuple[int, int],
    parameters: Mapping[str, Any],
    graphs: Mapping[str, Graph],
) -> Boxes:
    if not len(regions):
        none = np.zeros(0, dtype=np.int64)
        masks = np.zeros((0, 1, 1), dtype=np.float32) if MASKS in parameters["parts"] else None
        return Boxes(regions, none, none.astype(np.float32), masks)
    cut = pieces(maps, regions, parameters["side"], parameters["samples"])
    logits, offsets = graphs[BOXES](cut)
    corners = shapes.moved(offsets, regions, parameters["weights"], parameters["most"])
    corners = shapes.clipped(corners, size)[:, 1:].reshape(-1, 4)  # the first class is none
    shares = shapes.shares_of(logits)[:, 1:]
    labels = np.broadcast_to(np.arange(1, 1 + shares.shape[1]), shares.shape).reshape(-1)
    flat = shares.reshape(-1)
    stays = np.flatnonzero(
        (flat > np.float32(parameters["min_score"])) & shapes.large(corners, 1e-2)
    )
    corners, flat, labels = corners[stays], flat[stays], labels[stays]
    best = shapes.kept(corners, flat, labels, parameters["overlap"])[: parameters["detections"]]
    corners, flat, labels = corners[best], flat[best], labels[best]
    if MASKS not in parameters["parts"]:
        return Boxes(corners, labels - 1, flat)
    if not len(corners):
        return Boxes(corners, labels - 1, flat, np.zeros((0, 1, 1), dtype=np.float32))
    cut = pieces(maps, corners, parameters["mask_side"], parameters["samples"])
    (outlines,) = graphs[MASKS](cut)
    own = shapes.chances(outlines[np.arange(len(labels)), labels])
    return Boxes(corners, labels - 1, flat, own)
