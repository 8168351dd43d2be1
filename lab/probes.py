"""A pretrained backbone with its attention exchanged: what a probe on its features is worth, before
and after recovery.

The probe is a logistic regression on the mean of the patch tokens of the backbone as it was. It
stays as it is, so what is measured is how near the features come back.
"""

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.kept import Recorded, answer_in
from lab.recover import OPTIONS, agreement, cosine, divergence
from softless.attention.registry import registered
from softless.compare.record import record_path, write_csv
from softless.convert.refit.refit import refit
from softless.convert.swap import swap
from softless.data.datasets import open_splits
from softless.data.progress import track
from softless.data.transforms import eval_transform
from softless.errors import UsageError, located, need, unknown
from softless.evaluation.intervals import paired_bootstrap
from softless.experiment.groups import DataSpec
from softless.exporting.source import tensors
from softless.models.create import create_model
from softless.recovery.distil import distil

STEPS = ("bare", "refit", "distil")
OPERATORS = ("sima", "seqnorm", "relu_linear", "soft")
IMAGES = 256
AT_ONCE = 40  # images of a pass
PENALTY = 0.1  # of the probe: scikit-learn's C
# of the distillation, by the agreement on held-out images: 36 steps at 1e-4 lower it
EPOCHS, RATE, BATCH = 8, 3e-5, 25


@dataclass(frozen=True)
class Probed:
    """One operator after one step, on the test images."""

    data: str
    op: str
    step: str
    images: int  # without labels, that the step was given
    test_images: int
    teacher_top1: float
    top1: float
    share: float
    difference_low: float  # of top1 to the teacher's, images drawn anew
    difference_high: float
    agreement: float
    kl: float
    cosine: float  # of the features, mean over tokens
    stream: float  # relative error of the features
    cpu_seconds: float


def probes(
    backbone: str,
    *,
    data: str,
    ops: Sequence[str] = OPERATORS,
    steps: Sequence[str] = ("bare", "refit"),
    images: int = IMAGES,
    epochs: int = EPOCHS,
    out: str | Path = "runs/probes",
    resume: bool = False,
    kept: bool = False,
    record: bool = False,
    threads: int = 1,
) -> Recorded:
    """Exchange the attention of a pretrained backbone, recover it, and probe its features.

    Args:
        backbone: a folder of `python -m lab backbone`; its image size is the one that is probed.
        data: a folder of class folders in parts, train and test among them.
        ops: operators.
        steps: bare, refit, distil; the last one follows the refit.
        images: without labels, that the refit is given.
        epochs: of the distillation.
        out: a folder for the answers.
        resume: keep the answers that are there.
        kept: tell those alone, and measure nothing.
        record: also write benchmarks/recover_backbone.csv of the repository.
        threads: of the processor, whose seconds are counted.

    Raises:
        UsageError: an unknown operator or step, answers that are there already.
        DataError: a damaged folder, or images that cannot be read.
    """
    need("sklearn")
    target = record_path("recover_backbone") if record else None
    for step in steps:
        if step not in STEPS:
            raise unknown("step", step, STEPS)
    torch.set_num_threads(threads)
    folder = located(out)
    bench = Bench(located(backbone), located(data), images, epochs)
    planned = [(registered(op).name, step) for op in ops for step in STEPS if step in steps]
    rows = []
    for op, step in track(planned, len(planned), "probing"):
        path = folder / f"{bench.name}-{op}-{step}-{images}.json"
        if kept and not path.exists():
            continue
        measure = partial(bench.measured, op, step)
        rows.append(answer_in(path, Probed, measure, resume=resume or kept))
    if not rows:
        raise UsageError(f"no answers in {out}: leave --kept out to measure")
    if target is not None:
        write_csv(target, [asdict(row) for row in rows])
    return Recorded(tuple(rows), target)


class Probe(nn.Module):
    """A backbone and a linear head on the mean of its patch tokens, standardised.

    Args:
        backbone: answers features (B, 1 + patches, C).
        head: of C numbers.
        mean: (C) that is taken from the features.
        spread: (C) that they are divided by.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, backbone: nn.Module, head: nn.Linear, mean: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.backbone, self.head, self.num_classes = backbone, head, head.out_features
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        self.pretrained_cfg = backbone.pretrained_cfg

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.answered(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Behind the last norm (B, tokens, C)."""
        backbone: Any = self.backbone
        features: Tensor = backbone.forward_features(images)
        return features

    def answered(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of features (B, tokens, C)."""
        logits: Tensor = self.head((features[:, 1:].mean(1) - self.mean) / self.spread)
        return logits


class Bench:
    """A backbone with its probe, and images."""

    def __init__(self, folder: Path, data: Path, images: int, epochs: int) -> None:
        self.name, self.data, self.epochs = f"{folder.name}-{data.name}", data, epochs
        model: Any = create_model(f"local-dir:{folder}", pretrained=True).eval()
        config = model.pretrained_cfg
        spec = DataSpec(source="folder", path=str(data))
        splits = open_splits(spec, 0)
        if splits.test is None:
            raise UsageError(f"{data} has no test part: probes are measured on one")
        size = config["input_size"][1:]
        transform = eval_transform(
            size, 1.0, config["interpolation"], config["mean"], config["std"], 3
        )
        self.train, self.test = (
            tensors(samples, transform) for samples in (splits.train, splits.test)
        )
        self.train_labels, self.labels = (
            torch.as_tensor(np.asarray(samples.targets)) for samples in (splits.train, splits.test)
        )
        self.teacher = self._probed(model, len(splits.classes))
        generator = torch.Generator().manual_seed(0)
        self.images = self.train[torch.randperm(len(self.train), generator=generator)[:images]]

    def _probed(self, model: Any, classes: int) -> Probe:
        from sklearn.linear_model import LogisticRegression

        width = model.num_features
        bare = Probe(model, nn.Linear(width, classes), torch.zeros(width), torch.ones(width))
        means = features_of(bare, self.train)[:, 1:].mean(1)
        mean, spread = means.mean(0), means.std(0)
        fitted = LogisticRegression(C=PENALTY, max_iter=3000).fit(
            ((means - mean) / spread).numpy(), self.train_labels.numpy()
        )
        head = nn.Linear(width, classes)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(fitted.coef_))
            head.bias.copy_(torch.from_numpy(fitted.intercept_))
        return Probe(model, head, mean, spread).eval()

    @cached_property
    def features(self) -> Tensor:
        """The teacher's, of the test images."""
        return features_of(self.teacher, self.test)

    def measured(self, op: str, step: str) -> Probed:
        """What an operator comes to after a step."""
        start = time.process_time()
        student = copy.deepcopy(self.teacher)
        swap(student.backbone, op, **OPTIONS.get(op, {}))
        if step != "bare":
            # the probe reads the mean, so a class token counts as a patch does
            refit(student, self.teacher, self.images, class_weight=1.0)
        if step == "distil":
            with tempfile.TemporaryDirectory() as folder:
                distil(
                    student,
                    self.teacher,
                    self.train,
                    out=Path(folder) / "run",
                    epochs=self.epochs,
                    lr=RATE,
                    batch_size=BATCH,
                    min_steps=None,
                    progress=False,
                )
            student.eval()
        seconds = time.process_time() - start
        features = features_of(student, self.test)
        with torch.no_grad():
            mine, theirs = student.answered(features), self.teacher.answered(self.features)
        right, right_teacher = ((x.argmax(1) == self.labels).tolist() for x in (mine, theirs))
        top1, teacher_top1 = float(np.mean(right)), float(np.mean(right_teacher))
        difference = paired_bootstrap([right], [right_teacher])
        given = {"bare": 0, "refit": len(self.images), "distil": len(self.train)}[step]
        return Probed(
            self.data.name,
            op,
            step,
            given,
            len(self.test),
            round(teacher_top1, 4),
            round(top1, 4),
            round(top1 / teacher_top1, 4),
            round(difference.low, 4),
            round(difference.high, 4),
            round(agreement(theirs, mine), 4),
            round(divergence(theirs, mine), 4),
            round(cosine(self.features, features), 4),
            round(float((features - self.features).norm() / self.features.norm()), 4),
            round(seconds, 1),
        )


@torch.no_grad()
def features_of(model: Probe, images: Tensor) -> Tensor:
    """Features (n, tokens, C) of images (n, C, h, w)."""
    return torch.cat([model.features(chunk) for chunk in images.split(AT_ONCE)])
