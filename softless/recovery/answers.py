"""How near a model's answers are to its teacher's, on some images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless.modes import in_evaluation
from softless.recovery.dense import answers_pixels, features_in, fitted_part, framed


@dataclass(frozen=True)
class Nearness:
    """A student's answers beside its teacher's; the means of images."""

    cosine: float | None  # of the features, token by token; None where a model has none to give
    agreement: float | None  # share of images with the same first class; None without classes
    kl: float | None  # of the teacher's distribution over classes from the student's
    top1: float | None  # accuracy, where labels are at hand
    teacher_top1: float | None
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Numbers by name."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [
            ("features' cosine", self.cosine, "{:.3f}"),
            ("agreement", self.agreement, "{:.1%}"),
            ("KL", self.kl, "{:.3f}"),
            ("top1", self.top1, "{:.1%}"),
        ]
        written = [
            f"{name} {form.format(value)}" for name, value, form in parts if value is not None
        ]
        beside = "" if self.teacher_top1 is None else f" (teacher {self.teacher_top1:.1%})"
        return ", ".join(written) + beside


def nearness(
    student: nn.Module,
    teacher: nn.Module,
    images: Sequence[Tensor],
    labels: Tensor | None = None,
) -> Nearness:
    """Compare both on images.

    Args:
        student: (B, C, h, w) to (B, K) or (B, D).
        teacher: the same.
        images: chunks (b, C, h, w).
        labels: (n) of all chunks, -1 where there is none.
    """
    if features_in(teacher) is not None:
        return _of_maps(student, teacher, images)
    cosines: list[Tensor] = []
    answers: list[tuple[Tensor, Tensor]] = []
    with in_evaluation(student), in_evaluation(teacher), torch.no_grad():
        for chunk in images:
            mine, theirs = _answered(student, chunk), _answered(teacher, chunk)
            if mine.features is not None and theirs.features is not None:
                cosines.append(
                    F.cosine_similarity(mine.features, theirs.features, dim=-1).flatten()
                )
            answers.append((mine.output.float(), theirs.output.float()))
    output, wanted = (torch.cat(parts) for parts in zip(*answers, strict=True))
    cosine = float(torch.cat(cosines).mean()) if cosines else None
    if getattr(teacher, "num_classes", 0) in {0, 1} or output.ndim != 2:
        if cosine is None:
            cosine = float(F.cosine_similarity(output, wanted, dim=-1).mean())
        return Nearness(cosine, None, None, None, None, len(output))
    divergence = F.kl_div(
        output.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean"
    )
    first, theirs_first = output.argmax(1), wanted.argmax(1)
    scored = None if labels is None else labels.to(first.device) >= 0
    right = [
        None
        if scored is None or labels is None or not bool(scored.any())
        else float((chosen == labels.to(chosen.device))[scored].float().mean())
        for chosen in (first, theirs_first)
    ]
    return Nearness(
        cosine,
        float((first == theirs_first).float().mean()),
        max(float(divergence), 0.0),
        right[0],
        right[1],
        len(output),
    )


def _of_maps(student: nn.Module, teacher: nn.Module, images: Sequence[Tensor]) -> Nearness:
    """The same of segmenters and detectors: the cosine is of their hosts' maps, position by
    position; agreement and divergence are those of pixels.
    """
    sums = dict.fromkeys(("cosine", "positions", "agreeing", "divergence", "pixels"), 0.0)
    count = 0
    with in_evaluation(student), in_evaluation(teacher), torch.no_grad():
        for chunk in images:
            count += len(chunk)
            grids = framed(teacher, chunk)
            for mine, goal in zip(
                fitted_part(student)(grids), fitted_part(teacher)(grids), strict=True
            ):
                near = F.cosine_similarity(mine.float(), goal.float(), dim=1)
                sums["cosine"] += float(near.sum())
                sums["positions"] += near.numel()
            if answers_pixels(teacher):
                output, goal = (model(grids).float() for model in (student, teacher))
                agreeing = output.argmax(1) == goal.argmax(1)
                sums["agreeing"] += float(agreeing.sum())
                sums["pixels"] += agreeing.numel()
                sums["divergence"] += float(
                    F.kl_div(
                        output.log_softmax(1), goal.log_softmax(1), log_target=True, reduction="sum"
                    )
                )
    pixels = sums["pixels"]
    return Nearness(
        sums["cosine"] / sums["positions"],
        sums["agreeing"] / pixels if pixels else None,
        max(sums["divergence"] / pixels, 0.0) if pixels else None,
        None,
        None,
        count,
    )


@dataclass(frozen=True)
class _Answered:
    features: Tensor | None  # (B, N, C)
    output: Tensor


def _answered(model: nn.Module, chunk: Tensor) -> _Answered:
    """What a model makes of images; in two parts where it has them."""
    network: Any = model
    chunk = chunk.to(next(model.parameters()))
    if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
        output = network(chunk)
        return _Answered(None, output[0] if isinstance(output, list | tuple) else output)
    features = network.forward_features(chunk)
    tokens = features if isinstance(features, Tensor) and features.ndim == 3 else None
    output = network.forward_head(features)
    return _Answered(tokens, output[0] if isinstance(output, list | tuple) else output)
