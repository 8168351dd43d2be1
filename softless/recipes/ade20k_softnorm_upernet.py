"""UPerNet on normalised SOFT-Small, ADE20K's 150 classes.

Reaches: 46.2 mIoU in the paper's README with SOFT-Small, 48.0 with SOFT-Medium (weights of
         ImageNet, a decoder of mmsegmentation). Not run here.
Takes:   160,000 steps of 16 crops: days of eight GPUs.
Paper:   normalised SOFT, arXiv:2207.03341; UPerNet, arXiv:1807.10221. Its code says no
         hyper-parameters for this: the settings are those of XCiT's and Swin's UPerNet in
         mmsegmentation.
Command: softless train --recipe ade20k_softnorm_upernet --data ADEChallengeData2016 --set
         model.weights=WEIGHTS

An epoch has 1,263 steps of 16 of the 20,210 images: 127 of them are 160,401 steps, and the one of
warm-up is 1,263 steps where the reference has 1,500. Images of the challenge's release have a
shorter side of 512 pixels or more, so the scale of 0.5 to 2 is of their own size. Evaluation is of
whole images at their own size. Under torchrun the batch is shared: 2 images on each of 8 processes.
"""

from softless.experiment.groups import DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.tasks.segmentation.settings import SegmentationSpec


def recipe() -> Recipe:
    return Recipe(
        name="ade20k_softnorm_upernet",
        summary="UPerNet on normalised SOFT-Small, ADE20K",
        model=ModelSpec(name="softnorm_small_224"),
        data=DataSpec(
            source="masks",
            image_size=512,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            workers=4,
        ),
        segmentation=SegmentationSpec(
            decoder="upernet",
            width=512,
            crop=(512, 512),
            crop_share=0.75,
            scale=(0.5, 2.0),
            photometric=True,
        ),
        optim=OptimSpec(lr=6e-5, base_batch=None, weight_decay=0.01),
        schedule=ScheduleSpec(
            name="poly", epochs=127, warmup_epochs=1, warmup_lr=6e-11, min_lr=0.0
        ),
        batch_size=16,
        drop_path=0.1,
        amp="float16",
        metric="miou",
    )
