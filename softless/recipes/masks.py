"""Outlines of one's own in COCO's files: Mask R-CNN on a small XCiT with SimA, its sizes measured
on the training boxes.

Reaches: depends on the images. The same model has mask AP 0.41 on nuclei: docs/uses.md.
Takes:   as `boxes`, and about a fifth more for the masks.
Paper:   XCiT's detector (arXiv:2106.09681) with SimA (arXiv:2206.08898, section 4.2), at a fraction
         of its size.
Command: softless train --recipe masks --data DATA

What is measured, and how it is set instead: softless/recipes/boxes.py.
"""

from dataclasses import replace

from softless.experiment.recipe import Recipe
from softless.recipes import boxes


def recipe() -> Recipe:
    plain = boxes.recipe()
    assert plain.detection is not None
    return replace(
        plain,
        name="masks",
        summary="outlines of one's own in COCO's files, Mask R-CNN on a small SimA-XCiT from "
        "random weights",
        detection=replace(plain.detection, head="maskrcnn"),
        metric="mask_ap",
    )
