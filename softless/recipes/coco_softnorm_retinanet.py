"""RetinaNet on the pyramid of normalised SOFT-Tiny, COCO, 12 epochs.

Reaches: 40.0 box AP in the README of the paper's code (Small 42.8, Medium 44.3, Large 45.3). Not
         run here.
Takes:   not known; the code says nothing of its machine.
Paper:   normalised SOFT, arXiv:2207.03341. Neither paper nor code give hyper-parameters: they are
         those of `coco_softnorm_maskrcnn`, our choice after PVT.
Command: torchrun --nproc-per-node 8 -m softless train --recipe coco_softnorm_retinanet --data COCO
         --set model.weights=WEIGHTS

Other sizes: --set model.name=softnorm_small_224 (medium, large).
"""

from dataclasses import replace

from softless.experiment.recipe import Recipe
from softless.recipes import coco_softnorm_maskrcnn


def recipe() -> Recipe:
    maskrcnn = coco_softnorm_maskrcnn.recipe()
    assert maskrcnn.detection is not None
    return replace(
        maskrcnn,
        name="coco_softnorm_retinanet",
        summary="RetinaNet on normalised SOFT-Tiny, COCO, 12 epochs",
        detection=replace(maskrcnn.detection, head="retinanet"),
    )
