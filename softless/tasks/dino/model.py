"""A student and its teacher: one module that holds all that self-distillation without labels trains
and continues.

    loss = mean over pairs of views (t, s), t global, s another one, of  - sum_k P_t[k] log P_s[k]
    P_s = softmax(head(backbone(view_s)) / student_temp),     P_t = softmax((head'(backbone'(view_t)) - centre) / teacher_temp)

The teacher's weights are an average of the student's over the steps, the centre one of the
teacher's outputs; neither has a gradient. Caron et al., DINO, arXiv:2104.14294. Head and loss are
those of the library lightly.
"""

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softless.attention.call import autocast_off
from softless.errors import need
from softless.models.create import no_weight_decay

GLOBAL = 2  # the first views; the teacher sees these alone


class SelfDistillation(nn.Module):
    """Views, each (B, C, h, w), to the loss (); the first two are the global ones.

    Both networks stay in training mode, as in the published code: BatchNorm takes the statistics of
    the batch in the teacher too.

    Args:
        student: a model without classes, images (B, C, h, w) of any of the views' sizes to features
            (B, D).
        teacher: another of the same architecture, without stochastic depth; it starts with the
            student's weights.
        width: D of the features.
        outputs: K of the heads.
        hidden: width inside the heads.
        bottleneck: width ahead of their last layer.
        norm_last_layer: whether the rows of the last layer keep length 1.
        freeze_last_layer: epochs in which the last layer does not move.
        student_temp: the student's temperature.
        center_momentum: of the centre.

    Raises:
        MissingExtra: lightly is not installed.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        width: int,
        outputs: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        norm_last_layer: bool = True,
        freeze_last_layer: int = 1,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        need("lightly")
        from lightly.loss.dino_loss import DINOLoss

        head = {
            "input_dim": width,
            "hidden_dim": hidden,
            "bottleneck_dim": bottleneck,
            "output_dim": outputs,
            "freeze_last_layer": freeze_last_layer,
            "norm_last_layer": norm_last_layer,
        }
        self.student, self.teacher = _branch(student, head), _branch(teacher, head)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(requires_grad=False)
        self._moved: Tensor | None = None  # the centre's mean over the parts of a step
        self.loss = DINOLoss(outputs, student_temp=student_temp, center_momentum=center_momentum)

    def forward(
        self, views: Sequence[Tensor], teacher_temp: float, part: tuple[int, int] = (0, 1)
    ) -> Tensor:
        """Views, each (B, C, h, w), the two global ones first -> the loss ().

        Args:
            views: of the same B images.
            teacher_temp: the teacher's temperature.
            part: which part of a step's images this is, and of how many: the centre moves after the
                last one.
        """
        with torch.no_grad():
            taught = self.teacher(torch.cat(list(views[:GLOBAL]))).chunk(GLOBAL)
        answers = [*self.student(torch.cat(list(views[:GLOBAL]))).chunk(GLOBAL)]
        if local := list(views[GLOBAL:]):
            answers += self.student(torch.cat(local)).chunk(len(local))
        before = self.loss.center.clone()  # the loss moves it in place
        with autocast_off(views[0].device.type):
            value: Tensor = self.loss(
                [_wide(x) for x in taught], [_wide(x) for x in answers], teacher_temp=teacher_temp
            )
        self._move_centre(before, *part)
        return value

    def _move_centre(self, before: Tensor, index: int, count: int) -> None:
        """Where a step's images come in several parts the centre stands until the last, and moves
        by their mean.
        """
        if count == 1:
            return
        share = self.loss.center / count
        moved = share if index == 0 or self._moved is None else self._moved + share
        last = index == count - 1
        self._moved = None if last else moved
        self.loss.center.copy_(moved if last else before)

    def hold_last_layer(self, epoch: int) -> None:
        """Cancel the gradients of the student's last layer in the first epochs, which are those it
        was told to freeze it for.
        """
        self.student.head.cancel_last_layer_gradients(epoch)  # type: ignore[operator, union-attr]

    def move_teacher(self, momentum: float) -> None:
        """teacher = momentum teacher + (1 - momentum) student, for each parameter."""
        from lightly.models.utils import update_momentum

        update_momentum(self.student, self.teacher, momentum)

    @torch.no_grad()
    def said_of(self, features: Tensor, teacher_temp: float) -> Tensor:
        """Features (n, D) of the teacher's backbone to its probabilities (n, K), centred and
        sharpened.
        """
        outputs: Tensor = self.teacher.head(features)  # type: ignore[operator]
        return ((_wide(outputs) - self.loss.center[0]) / teacher_temp).softmax(-1)

    def no_weight_decay(self) -> set[str]:
        """What the student's backbone names."""
        backbone: Any = self.student.backbone
        return {f"student.backbone.{name}" for name in no_weight_decay(backbone)}


def entropy(probabilities: Tensor) -> Tensor:
    """(n, K) to (n,): 0 where all weight is on one output, 1 where all outputs weigh the same."""
    return (
        torch.special.entr(probabilities).sum(-1)
        / torch.tensor(float(probabilities.shape[-1])).log()
    )


def spread(features: Tensor) -> float:
    """How far the features (n, D) of different images lie apart: sqrt(D) times the mean deviation
    of a channel, features of length 1.

    Directions without a preference give about 1, the same feature for every image 0 (Chen and He,
    SimSiam, arXiv:2011.10566, section 4.1).
    """
    unit = nn.functional.normalize(features.double(), dim=1)
    return float(unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5)


def _branch(backbone: nn.Module, head: dict[str, Any]) -> nn.Sequential:
    from lightly.models.modules.heads import DINOProjectionHead

    # the parametrised form, which torch recommends, would change the names of the weights
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*weight_norm.*deprecated", category=FutureWarning
        )
        return nn.Sequential(OrderedDict(backbone=backbone, head=DINOProjectionHead(**head)))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
