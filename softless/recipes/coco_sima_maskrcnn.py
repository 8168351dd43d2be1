"""Mask R-CNN on SimA-XCiT-S12/16, COCO, 36 epochs: the paper's recipe.

Reaches: 44.8 box AP and 40.3 mask AP on COCO's validation images in the paper (Table 3, from
         weights of ImageNet; XCiT-S12/16: 45.0 and 40.5). Not run here.
Takes:   36 hours on 8 RTX 2080 Ti (the paper's figure).
Paper:   SimA, arXiv:2206.08898, section 4.2, with what it takes over from XCiT's configuration
         (arXiv:2106.09681): steps after epochs 27 and 33, DETR's sizes, drop path 0.05, no decay on
         norms (timm's rule for all parameters of one dimension). XCiT's first 500 steps of rising
         rate are left out. Proposals, loss of boxes and sampling of regions are torchvision's and
         not that configuration's (docs/fidelity.md).
Command: torchrun --nproc-per-node 8 -m softless train --recipe coco_sima_maskrcnn --data COCO --set
         model.weights=WEIGHTS

COCO holds annotations/instances_{train,val}2017.json, train2017/ and val2017/; WEIGHTS are those of
a classifier, of `imagenet_sima_xcit_small` for one. Images of a batch are padded to its largest, so
a loss depends a little on batch mates, as it does in the reference. Images without objects are
trained on too.
"""

from softless.experiment.groups import DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.tasks.detection.settings import DetectionSpec


def recipe() -> Recipe:
    return Recipe(
        name="coco_sima_maskrcnn",
        summary="the paper's Mask R-CNN on SimA-XCiT-S12/16, COCO, 36 epochs",
        model=ModelSpec(name="sima_xcit_small_12_p16_224"),
        data=DataSpec(
            source="coco", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), workers=4
        ),
        detection=DetectionSpec(head="maskrcnn", layers=(4, 6, 8, 12), faults="skip"),
        optim=OptimSpec(lr=1e-4, base_batch=None, weight_decay=0.05),
        schedule=ScheduleSpec(name="multistep", epochs=36, warmup_epochs=0, decay_epochs=(27, 33)),
        batch_size=16,
        drop_path=0.05,
        metric="last",
        amp="float16",
    )
