"""`softless swap`: a timm model with another attention, what became of each layer, and what is left
of the exponentials.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from softless.convert.swap import Swapped
from softless.convert.swap import swap as exchange
from softless.data.folder import images_at
from softless.errors import UsageError, located
from softless.experiment.assignments import assignments
from softless.experiment.fields import literal
from softless.measure.audit import audit as watch
from softless.measure.findings import Audit
from softless.models.durable import write_tensors
from softless.models.publish import is_new, save_weights
from softless.models.weights import load_weights
from softless.recovery.pictures import drawn
from softless.saliency.viewer import channels_of, declared, evaluation_transform
from softless.tasks.trained import created

FILE_ENDING, OTHER_ENDINGS = ".safetensors", {".pth", ".pt", ".bin"}


@dataclass(frozen=True)
class Exchange:
    """The report of a swap between two audits."""

    model: str
    swapped: Swapped
    before: Audit
    after: Audit
    loaded: str  # what load_weights said
    out: Path | None

    def to_dict(self) -> dict[str, Any]:
        report = self.swapped
        return {
            "model": self.model,
            "op": report.op,
            "swapped": dict(report.swapped),
            "kept": dict(report.kept),
            "lost": dict(report.lost),
            "without": dict(report.without),
            "gains": {path: list(gains) for path, gains in report.gains.items()},
            "errors": {path: list(errors) for path, errors in report.errors.items()},
            "new": {path: list(names) for path, names in report.new.items()},
            "untried": report.untried,
            "kinds_before": dict(self.before.kinds),
            "kinds_after": dict(self.after.kinds),
            "exp_free": self.after.exp_free,
            "out": None if self.out is None else str(self.out),
        }

    def __str__(self) -> str:
        kinds = sorted({*self.before.kinds, *self.after.kinds})
        width = max((len(kind) for kind in kinds), default=0)
        lines = [self.loaded] if self.loaded else []
        lines += [str(self.swapped), "", "evaluations for one image, before and after:"]
        lines += [
            f"  {kind:<{width}}  {self.before.kinds.get(kind, 0):>14,}  "
            f"{self.after.kinds.get(kind, 0):>14,}"
            for kind in kinds
        ]
        lines += (
            []
            if self.out is None
            else ["", f"{'weights' if self.out.suffix == FILE_ENDING else 'model'}: {self.out}"]
        )
        return "\n".join(lines)


def swap(
    model: str,
    op: str = "sima",
    *,
    weights: str | Path | None = None,
    allow_nonfinite: bool = False,
    pretrained: bool = False,
    layers: Sequence[str] = ("*",),
    force: Sequence[str] = (),
    calibrate: str | Path | None = None,
    images: int = 8,
    num_classes: int | None = None,
    in_chans: int | None = None,
    image_size: int | None = None,
    set: Sequence[str] = (),  # the command says --set
    out: str | Path | None = None,
) -> Exchange:
    """Exchange the attention of a timm model, keep its projections, and say what was swapped, what
    was kept and why.

    The Python function softless.swap takes a module. A swapped model has to be trained before it is
    of use. The folder that --out writes is opened, with its operator, by eval, predict, export and
    the others, and by softless.create_model("local-dir:FOLDER", pretrained=True). To load a file of
    weights: make the model, softless.swap it alike, softless.load_weights; the file's metadata name
    model, operator, options and layers.

    Args:
        model: the name of a timm model, or a folder of `save_weights`.
        op: the operator.
        weights: a checkpoint for the model as it is before the swap.
        allow_nonfinite: take NaN and infinity in it.
        pretrained: start from the weights that timm knows for the name (downloads).
        layers: patterns of the paths of attention modules ("blocks.[0-5].*"); the others are kept.
        force: patterns of the paths at which what an operator cannot keep (a relative position
            bias) may be lost.
        calibrate: a folder of images, or one image: each branch is brought as near as one number a
            head can to what it was on them.
        images: how many of them: drawn from a fixed seed, in turn from each folder below, so that
            every class counts.
        num_classes: classes of a model of one's own, as --weights has them.
        in_chans: channels of its images.
        image_size: pixels of their side.
        set: options of the operator, as in token_scale=tokens.
        out: a new folder for the swapped model, as softless.save_weights writes it; or a
            .safetensors file for its weights alone.

    Raises:
        UsageError: an unknown model, operator or option, patterns that fit nothing, or a model in
            which nothing can be swapped.
        DataError: weights or images that cannot be read.
    """
    options = options_of(set)
    target = None if out is None else _checked(located(out))
    if pretrained and weights is not None:
        raise UsageError(
            "--pretrained and --weights both say where the weights come from: choose one"
        )
    requested = {"num_classes": num_classes, "in_chans": in_chans, "img_size": image_size}
    arguments = {name: value for name, value in requested.items() if value is not None}
    network = created(model, pretrained, arguments).eval()
    loaded = (
        ""
        if weights is None
        else str(load_weights(network, weights, allow_nonfinite=allow_nonfinite))
    )
    batch = None if calibrate is None else _images(located(calibrate), images, network)
    before = watch(network)
    swapped = exchange(network, op, layers=layers, force=force, calibrate=batch, **options)
    if target is not None and target.suffix != FILE_ENDING:
        save_weights(network, target)
    elif target is not None:
        record = {
            "model": model,
            "op": swapped.op,
            "options": options,
            "layers": list(layers),
            "force": list(force),
        }
        record |= {"arguments": arguments} if arguments else {}
        state = {
            name: tensor.detach().cpu().clone().contiguous()
            for name, tensor in network.state_dict().items()
        }
        write_tensors(target, state, {"format": "pt", "softless.swap": json.dumps(record)})
    return Exchange(model, swapped, before, watch(network), loaded, target)


def options_of(words: Sequence[str]) -> dict[str, Any]:
    """Options of an operator, from `name=value`."""
    return {name: literal(text) for name, text in assignments(words).items()}


def _checked(path: Path) -> Path:
    """Where it is written: a new folder, or a file, known before any work.

    Raises:
        UsageError: another file, a folder in use, or a place that is not there.
    """
    if path.suffix in OTHER_ENDINGS:
        raise UsageError(
            f"--out {path}: give a folder, or a file that ends in {FILE_ENDING} for the weights "
            "alone"
        )
    if path.suffix != FILE_ENDING and not is_new(path):
        raise UsageError(f"--out {path} holds files already: name a new folder")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no folder {path.parent}; make it first")
    return path


def _images(folder: Path, number: int, model: nn.Module) -> Tensor:
    """(number, C, H, W), framed as the model's evaluation does."""
    import torch

    if number < 1:
        raise UsageError(f"images={number}: at least one image to calibrate on")
    samples, transform = (
        images_at(folder, channels_of(model), scale=declared(model)),
        evaluation_transform(model),
    )
    return torch.stack([transform(samples.image(index)) for index in drawn(samples.files)[:number]])
