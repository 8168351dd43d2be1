"""Detectors: their maps, what an image's answers and loss depend on, and what they consist of."""

import copy

import pytest
import torch
from torch import Tensor, nn

from softless.errors import UsageError
from softless.tasks.detection.model import Detector, detector, parameter_parts
from softless.tasks.loaded import assemble

XCIT = (
    "xcit_nano_12_p16_224",
    {"op": "sima", "embed_dim": 32, "depth": 4, "num_heads": 2, "cls_attn_layers": 1},
)
PYRAMID = (
    "soft_pyramid_tiny_224",
    {
        "op": "softnorm",
        "embed_dims": (16, 16, 32, 32),
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 2, 2),
    },
)
SMALL = {"classes": 2, "width": 32, "proposals": 40, "regions": 16, "min_size": None}
every_head = pytest.mark.parametrize("head", ["maskrcnn", "fasterrcnn", "retinanet"])


def made(head: str, host: tuple[str, dict] = XCIT, **changes) -> Detector:
    return detector(*host, head=head, **{**SMALL, **changes})


def target(boxes: list[list[float]], side: int = 64, key: int = 5) -> dict[str, Tensor]:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), side, side, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, corners.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    labels = torch.arange(len(boxes)) % 2
    return {"boxes": corners, "labels": labels, "masks": masks, "key": torch.tensor(key)}


@every_head
@pytest.mark.parametrize("host", [XCIT, PYRAMID], ids=["one grid", "pyramid"])
def test_every_parameter_learns(head: str, host: tuple[str, dict]):
    model = made(head, host).train()
    images = [torch.randn(3, 64, 64), torch.randn(3, 64, 64)]
    model.loss(
        images, [target([[4, 4, 40, 40], [20, 10, 60, 50]]), target([[8, 8, 30, 50]])]
    ).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    assert all(
        parameter.grad.isfinite().all()
        for parameter in model.parameters()
        if parameter.grad is not None
    )


@every_head
def test_images_without_objects_are_learnt_from(head: str):
    model = made(head).train()
    loss = model.loss([torch.randn(3, 64, 64)] * 2, [target([]), target([[8, 8, 30, 50]])])
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.loss([torch.randn(3, 64, 64)], [target([])]).isfinite()


@every_head
def test_the_loss_is_the_mean_of_the_images_losses(head: str):
    """Of a model without BatchNorm in training: so any number of ranks sees the loss of the global
    batch.
    """
    model = made(head).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = [torch.randn(3, 64, 64) for _ in range(3)]
    targets = [
        target([[4, 4, 40, 40]], key=1),
        target([[8, 8, 30, 50], [1, 1, 20, 20]], key=2),
        target([], key=3),
    ]
    apart = torch.stack([
        model.loss([image], [one]) for image, one in zip(images, targets, strict=True)
    ])
    torch.testing.assert_close(model.loss(images, targets), apart.mean())
    state = torch.get_rng_state()
    model.loss(images, targets)
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is left alone"


def test_what_is_drawn_comes_from_the_key():
    """With fewer regions than there are, which ones are learnt from is drawn."""
    model = made("maskrcnn", regions=2).train()
    image = torch.randn(3, 64, 64)
    boxes: list[list[float]] = [[4, 4, 40, 40], [20, 10, 60, 50], [1, 1, 30, 30]]
    losses = [model.loss([image], [target(boxes, key=key)]).item() for key in (1, 1, 2, 3, 4)]
    assert losses[0] == losses[1]
    assert len(set(losses)) > 2


@every_head
def test_answers_do_not_depend_on_batch_mates(head: str):
    model = made(head, min_score=0.0, detections=5).eval()
    small, large = torch.randn(3, 70, 96), torch.randn(3, 128, 100)
    with torch.no_grad():
        (alone,), (together, _) = model([small]), model([small, large])
    assert len(alone["boxes"]) == 5
    assert set(alone) == {"boxes", "labels", "scores"} | (
        {"masks"} if head == "maskrcnn" else set()
    )
    for name, value in alone.items():
        assert torch.equal(value, together[name]), name
    assert set(alone["labels"].tolist()) <= {0, 1}
    if head == "maskrcnn":
        assert (alone["masks"].dtype, tuple(alone["masks"].shape)) == (torch.bool, (5, 70, 96))


def test_images_are_resized_and_answers_are_in_their_own_pixels():
    torch.manual_seed(0)
    as_given = made("retinanet", min_score=0.0, detections=5).eval()
    resized = made("retinanet", min_score=0.0, detections=5, min_size=128).eval()
    resized.load_state_dict(as_given.state_dict())
    image = torch.randn(3, 64, 64)
    larger = nn.functional.interpolate(image[None], scale_factor=2.0, mode="bilinear")[0]
    with torch.no_grad():
        (small,), (large,) = resized([image]), as_given([larger])
    torch.testing.assert_close(small["boxes"] * 2, large["boxes"])


def test_a_batch_is_a_list_of_images():
    model = made("retinanet").eval()
    assert len(model(torch.zeros(2, 3, 64, 64))) == 2


@pytest.mark.parametrize("head", ["maskrcnn", "retinanet"])
def test_boxes_keep_float32_under_autocast(head: str):
    model = made(head, min_score=0.0).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (answer,) = model([torch.randn(3, 500, 500)])
    assert answer["boxes"].dtype == answer["scores"].dtype == torch.float32
    assert not torch.equal(answer["boxes"], answer["boxes"].bfloat16().float())


def test_gradients_under_autocast_are_those_of_float32():
    """At 64 pixels RetinaNet's coarsest map is one pixel, where the gradient of a bfloat16
    convolution is not to be trusted.
    """
    model = made("retinanet", PYRAMID, norm="group").train()
    images, targets = [torch.randn(3, 64, 64)], [target([[4, 4, 40, 40]])]
    for _ in range(5):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(images, targets)
        loss.backward()
        assert (
            max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) < 100
        )


def test_a_copy_answers_alike():
    """Averaging copies the model."""
    model = made("maskrcnn", min_score=0.0).eval()
    image = torch.randn(3, 64, 64)
    with torch.no_grad():
        (ours,), (theirs,) = model([image]), copy.deepcopy(model)([image])
    assert torch.equal(ours["boxes"], theirs["boxes"])


def test_the_parts_are_the_whole():
    """SimA's Mask R-CNN has 44.3M parameters in the paper (Table 3), counted without a background's
    box and mask.
    """
    args = {"op": "sima"}
    model = assemble(
        "detection",
        "xcit_small_12_p16_224",
        args,
        {"head": "maskrcnn", "classes": 80, "layers": [4, 6, 8, 12]},
    )
    assert isinstance(model, Detector)
    parts = parameter_parts(model)
    assert (
        sum(parts.values())
        == sum(parameter.numel() for parameter in model.parameters())
        == 44_390_821
    )
    background = 4 * 1025 + 257
    assert sum(parts.values()) - background == 44_386_464


def test_bad_arguments_are_named():
    with pytest.raises(
        UsageError, match=r"no detection head named 'maskrcn'\. Did you mean 'maskrcnn'"
    ):
        made("maskrcn")
    with pytest.raises(UsageError, match="give five positive sides"):
        made("maskrcnn", anchors=(8, 16))
    with pytest.raises(UsageError, match="no norm"):
        made("maskrcnn", norm="batch")
