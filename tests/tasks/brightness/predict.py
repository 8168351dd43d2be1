"""The brightness of images: a table."""

from dataclasses import dataclass
from pathlib import Path

import torch

from softless.data.loader import shared_loader
from softless.data.samples import Samples
from softless.evaluation.run import LoadedRun
from softless.prediction.answers import Answers
from softless.prediction.results import Results
from softless.prediction.setting import Setting


@dataclass(frozen=True, kw_only=True)
class BrightnessAnswers(Answers):
    """Where the answers lie."""

    csv: Path

    def __str__(self) -> str:
        return "\n".join([*self.head(self.csv), *self.foot()])


@torch.no_grad()
def predict(
    loaded: LoadedRun, samples: Samples, out: Results, setting: Setting, *, overlays: bool
) -> BrightnessAnswers:
    """Write `brightness.csv`: file and brightness."""
    del overlays
    loader = shared_loader(
        samples, loaded.transform, batch=setting.batch_size, workers=setting.workers
    )
    answers = torch.cat([loaded.model(images) for images, _ in loader]).tolist()
    table = out.file("brightness.csv")
    lines = [f"{samples.name(index)},{answer:.4f}" for index, answer in enumerate(answers)]
    table.write_text("\n".join(["file,brightness", *lines, ""]), encoding="utf-8")
    return BrightnessAnswers(
        csv=table, overlays=None, images=len(answers), precision=setting.precision
    )
