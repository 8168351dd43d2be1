"""Self-supervision by DINO: a student learns to say of small views what its own average says of
large ones; labels are not used.

Before step i of n:  weight decay of cosine(i / n) between its ends, and no gradient for the head's
                     last layer in the first epochs.
After it:            teacher = m teacher + (1 - m) student, m of cosine(i / n) between its ends.

Caron et al., arXiv:2104.14294; with SimA in XCiT as in arXiv:2206.08898, section 4.3. Loss, head,
views and schedules are those of lightly, whose cosine reaches its end at the last step. What is
measured, kept as best and published is the teacher's backbone of the last epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from softless.data.loader import EpochLoader
from softless.data.samples import Samples
from softless.data.transforms import Pipeline, eval_transform
from softless.errors import DataError, UsageError
from softless.evaluation.features import as_it_is, extract
from softless.experiment.recipe import Recipe
from softless.models.sizes import any_size
from softless.tasks.dino.model import SelfDistillation, entropy, spread
from softless.tasks.dino.samples import open_unlabelled
from softless.tasks.dino.settings import DinoSpec
from softless.tasks.dino.transforms import multi_crop
from softless.tasks.loaded import assemble
from softless.tasks.task import Task, TrainingProgress

COLLAPSED = 0.02  # spread of features below which all images look alike
CHUNK = 4096  # images whose 65,536 outputs are held at once: 1 GiB


@dataclass(frozen=True)
class Watched:
    """Whether the features of one split tell images apart. Labels have no part in it.

    `spread` is about 1 where features point everywhere and 0 where all are the same. `entropy` is
    the teacher's, mean over images: 1 where all outputs weigh the same, 0 where each image has one
    output to itself. `mean_entropy` is that of its mean over images: 0 where all images share one
    output.
    """

    spread: float
    entropy: float | None  # None without the teacher's head, which a finished run does not keep
    mean_entropy: float | None
    seen: int
    expected: int

    @property
    def collapsed(self) -> bool:
        """Whether all images have the same features, or (where the head is at hand) the same
        answer.
        """
        alike = (
            self.entropy is not None
            and self.mean_entropy is not None
            and (self.entropy > 0.999 or self.mean_entropy < 0.001)
        )
        return self.spread < COLLAPSED or alike

    def summary(self) -> dict[str, Any]:
        content = {"spread": self.spread, "entropy": self.entropy, "used": self.mean_entropy}
        return {**content, "seen": self.seen, "expected": self.expected}

    def to_dict(self) -> dict[str, Any]:
        return {**self.summary(), "collapsed": self.collapsed}

    def write(self, folder: Path, samples: Samples) -> None:
        """Nothing: features answer no question about an image."""

    def __str__(self) -> str:
        rows = [
            ("images", f"{self.seen} of {self.expected}"),
            ("spread of features", f"{self.spread:.4f}"),
        ]
        if self.entropy is not None and self.mean_entropy is not None:
            rows += [
                ("teacher's entropy", f"{self.entropy:.4f}"),
                ("entropy of its mean", f"{self.mean_entropy:.4f}"),
            ]
        rows.append(("collapsed", "yes" if self.collapsed else "no"))
        return "\n".join(f"{name:<22} {value}" for name, value in rows)


class Dino(Task):
    """Views of unlabelled images, each (B, C, S, S), to the loss of a student against its teacher.

    Args:
        recipe: with its group `dino`.
        splits: of unlabelled images.
    """

    name = "dino"
    needs = ("lightly",)
    measures = ("last",)

    def __init__(self, recipe: Recipe, splits: Any) -> None:
        assert recipe.dino is not None
        self.recipe, self.splits = recipe, splits
        self.spec: DinoSpec = recipe.dino
        self.network: SelfDistillation | None = None  # what is trained, once it is built

    @classmethod
    def open(cls, recipe: Recipe) -> "Dino":
        """Open the images of the recipe, without their labels.

        Raises:
            UsageError: a field of the recipe that would have no effect, or cannot be used.
            DataError: fewer training images than a step takes, or whatever else is wrong.
        """
        _check(recipe)
        splits = open_unlabelled(recipe.data, recipe.seed)
        if len(splits.train) < recipe.step_images:
            raise DataError(
                f"{len(splits.train)} training images are fewer than a step takes: add images, or "
                "set a smaller "
                f"batch_size (now {recipe.batch_size}) or accumulate (now {recipe.accumulate})"
            )
        return cls(recipe, splits)

    def construction(self) -> dict[str, Any]:
        return {"architecture": self.recipe.model.name, "model_args": self._arguments}

    @cached_property
    def _arguments(self) -> dict[str, Any]:
        """Of the backbone: without classes, and taking images of any size where the model can be
        told to.
        """
        model, data = self.recipe.model, self.recipe.data
        args = {**model.args, "num_classes": 0, "in_chans": data.in_chans}
        if model.op is not None:
            args["op"] = model.op
        return any_size(model.name, args, data.side)

    def surround(self, model: nn.Module) -> SelfDistillation:
        """Student and teacher with their heads: what is trained.

        Raises:
            UsageError: the model takes no local crops, or gives no vector for an image.
        """
        spec = self.spec
        width = self._width(model)
        teacher = assemble(self.name, **self.construction())
        self.network = SelfDistillation(
            model,
            teacher,
            width=width,
            outputs=spec.outputs,
            hidden=spec.hidden,
            bottleneck=spec.bottleneck,
            norm_last_layer=spec.norm_last_layer,
            freeze_last_layer=spec.freeze_last_layer,
            student_temp=spec.student_temp,
            center_momentum=spec.center_momentum,
        )
        return self.network

    def _width(self, model: nn.Module) -> int:
        """Of the features of a local crop: a size that the model refuses is refused before a folder
        is made.
        """
        side, training = self.spec.local_size, model.training
        try:
            with torch.no_grad():
                features = model.eval()(torch.zeros(1, self.recipe.data.in_chans, side, side))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"'{self.recipe.model.name}' takes no local crops of {side} pixels beside global "
                f"ones of {self.recipe.data.image_size}: {error}; set "
                "dino.local_size, or choose a model that takes images of any size"
            ) from error
        finally:
            model.train(training)
        if features.ndim != 2:
            raise UsageError(
                f"'{self.recipe.model.name}' gives no vector for an image but "
                f"{tuple(features.shape)}: leave model.args.global_pool out"
            )
        return int(features.shape[1])

    def learner(self, model: nn.Module) -> nn.Module:
        return model

    def transform(self, *, train: bool) -> Pipeline:
        """In training an image to views, each (C, S, S), the two global ones first; in evaluation
        to (C, S, S).
        """
        data, splits = self.recipe.data, self.splits
        deep = data.range is not None
        if train:
            return multi_crop(
                self.spec, data.side, splits.mean, splits.std, data.in_chans, deep=deep
            )
        return eval_transform(
            data.image_size,
            data.crop_pct,
            data.interpolation,
            splits.mean,
            splits.std,
            data.in_chans,
            deep=deep,
        )

    def prepare(
        self,
        batch: Any,
        device: torch.device,
        *,
        epoch: int,
        step: int,  # noqa: ARG002
    ) -> tuple[list[Tensor], float]:
        """Views, each (B, C, S, S), on the device, and the teacher's temperature in this epoch."""
        views, _ = batch
        return [view.to(device, non_blocking=True) for view in views], self.teacher_temp(epoch)

    def parts(self, prepared: tuple[Any, ...], count: int) -> list[tuple[Any, ...]]:
        """Views cut along B, each part with the temperature and its (index, count)."""
        views, temperature = prepared
        cut = [view.chunk(count) for view in views]
        return [
            ([view[index] for view in cut], temperature, (index, count)) for index in range(count)
        ]

    def teacher_temp(self, epoch: int) -> float:
        """A line from the first to the last temperature over `teacher_temp_epochs`."""
        first, last = self.spec.teacher_temp
        return first + (last - first) * min(epoch / max(self.spec.teacher_temp_epochs, 1), 1.0)

    def before_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: TrainingProgress
    ) -> None:
        """Hold the last layer in the first epochs, and move the weight decay along its cosine."""
        network = cast("SelfDistillation", model)
        network.hold_last_layer(progress.epoch)
        if self.spec.weight_decay_end is not None:
            decay = _cosine(progress, (self.recipe.optim.weight_decay, self.spec.weight_decay_end))
            for group in optimizer.param_groups:
                if group["weight_decay"] > 0:  # others never have any: norms, biases, class token
                    group["weight_decay"] = decay

    def after_step(self, model: nn.Module, progress: TrainingProgress) -> None:
        """Move the teacher towards the student, its momentum along its cosine."""
        cast("SelfDistillation", model).move_teacher(_cosine(progress, self.spec.momentum))

    def evaluated(self, model: nn.Module) -> nn.Module:
        """The teacher's backbone."""
        return cast("SelfDistillation", model).teacher.backbone  # type: ignore[return-value]

    def published(self, model: nn.Module) -> nn.Module:
        return model

    def evaluate(self, model: nn.Module, loader: EpochLoader, *, amp: str, label: str) -> Watched:
        """Spread of the features (n, D); while training also entropies of the teacher's answers."""
        features, _ = extract(model, loader, as_it_is, amp=amp, label=label)
        sharp, mean_entropy = self._entropies(model, features)
        expected = len(loader.dataset)  # type: ignore[arg-type]
        return Watched(spread(features), sharp, mean_entropy, len(features), expected)

    def _entropies(self, model: nn.Module, features: Tensor) -> tuple[float | None, float | None]:
        """Of the teacher's answers, and of their mean; None where the model is not the teacher that
        is being trained.
        """
        network = self.network
        if network is None or network.teacher.backbone is not model:
            return None, None
        device, sharp, mean = network.loss.center.device, 0.0, 0.0
        for part in features.split(CHUNK):
            answers = network.said_of(part.to(device), self.spec.teacher_temp[1])
            sharp, mean = sharp + float(entropy(answers).sum()), mean + answers.sum(0, keepdim=True)
        return sharp / len(features), float(entropy(mean / len(features)))  # type: ignore[arg-type]


def _cosine(progress: TrainingProgress, ends: Sequence[float]) -> float:
    """end - (end - start) (1 + cos(pi i / (n - 1))) / 2 at step i of n."""
    from lightly.utils.scheduler import cosine_schedule

    return cosine_schedule(progress.updates, progress.total, *ends)


def _check(recipe: Recipe) -> None:
    """Fields that would have no effect here, or none that makes sense."""
    spec = recipe.dino
    assert spec is not None
    if type(recipe.augment)(repeats=recipe.augment.repeats) != recipe.augment:
        raise UsageError(
            "the fields of augment are for classification; views are set by the fields of dino"
        )
    if recipe.ema_decay is not None or recipe.ema_evaluate:
        raise UsageError(
            "the teacher of dino is an average of the weights already: set ema_decay=none"
        )
    if recipe.optim.layer_decay is not None:
        raise UsageError("optim.layer_decay is for fine-tuning: set it to none in dino")
    if (
        spec.weight_decay_end is not None
        and not 0 < recipe.optim.weight_decay <= spec.weight_decay_end
    ):
        raise UsageError(
            f"weight decay rises from optim.weight_decay={recipe.optim.weight_decay} to "
            f"dino.weight_decay_end={spec.weight_decay_end}: the first must be above 0 "
            "and not above the second; weight_decay_end=none keeps it as it is"
        )


TASK = Dino
