"""`softless swap`: a timm model with another attention, what became of each layer, and what is left
of the exponentials.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from softless.convert.swap import Swapped
from softless.convert.swap import swap as exchange
from softless.data.folder import images_at
from softless.errors import SoftlessError, UsageError, located
from softless.experiment.assignments import assignments
from softless.experiment.fields import literal
from softless.measure.audit import audit as watch
from softless.measure.findings import Audit
from softless.models.create import create_model, of_channels
from softless.models.durable import write_tensors
from softless.models.weights import load_weights
from softless.saliency.viewer import channels_of, declared, evaluation_transform


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
        lines += [] if self.out is None else ["", f"weights: {self.out}"]
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
    of use. To load the weights that --out writes: make the model, softless.swap it alike,
    softless.load_weights; the file's metadata name model, operator, options and layers.

    Args:
        model: the name of a timm model.
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
        out: a .safetensors file for the weights of the swapped model.

    Raises:
        UsageError: an unknown model, operator or option, patterns that fit nothing, or a model in
            which nothing can be swapped.
        DataError: weights or images that cannot be read.
    """
    options = {name: _value(text) for name, text in assignments(set).items()}
    target = None if out is None else _checked(located(out))
    if pretrained and weights is not None:
        raise UsageError(
            "--pretrained and --weights both say where the weights come from: choose one"
        )
    requested = {"num_classes": num_classes, "in_chans": in_chans, "img_size": image_size}
    arguments = {name: value for name, value in requested.items() if value is not None}
    network = _created(model, pretrained, arguments).eval()
    loaded = (
        ""
        if weights is None
        else str(load_weights(network, weights, allow_nonfinite=allow_nonfinite))
    )
    batch = None if calibrate is None else _images(located(calibrate), images, network)
    before = watch(network)
    swapped = exchange(network, op, layers=layers, force=force, calibrate=batch, **options)
    if target is not None:
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


def _value(text: str) -> Any:
    return literal(text)


def _checked(path: Path) -> Path:
    if path.suffix != ".safetensors":
        raise UsageError(
            f"--out {path}: the weights are written as .safetensors; give the file that ending"
        )
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no folder {path.parent}; make it first")
    return path


def _created(name: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    """The model before the swap.

    Raises:
        UsageError: a number that is none, or that its host does not take.
    """
    for option, value in arguments.items():
        if value < (0 if option == "num_classes" else 1):
            word = {"img_size": "image-size"}.get(option, option.replace("_", "-"))
            raise UsageError(f"--{word} {value}: give a positive number")
    try:
        network = create_model(name, pretrained=pretrained, **arguments)
    except SoftlessError:
        raise
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(
            f"{name} with {arguments} cannot be built: {str(error).splitlines()[0][:200]}"
        ) from error
    return _prepared(network, arguments.get("in_chans"), arguments.get("img_size"))


def _prepared(model: Any, channels: int | None, side: int | None) -> Any:
    """A model that says how images of other channels or of another size than it was published with
    are prepared.
    """
    config = dict(model.pretrained_cfg)
    config |= {} if side is None else {"input_size": (config["input_size"][0], side, side)}
    model.pretrained_cfg = config | ({} if channels is None else of_channels(config, channels))
    return model


def _drawn(files: Sequence[str], number: int) -> list[int]:
    """So many files, in turn from each folder below, from a fixed seed."""
    folders: dict[str, list[int]] = {}
    for index in random.Random(0).sample(range(len(files)), len(files)):
        folders.setdefault(Path(files[index]).parent.as_posix(), []).append(index)
    turns = [indices for _, indices in sorted(folders.items())]
    rounds = (
        indices[turn]
        for turn in range(max(map(len, turns)))
        for indices in turns
        if turn < len(indices)
    )
    return list(islice(rounds, number))


def _images(folder: Path, number: int, model: nn.Module) -> Tensor:
    """(number, C, H, W), framed as the model's evaluation does."""
    import torch

    if number < 1:
        raise UsageError(f"images={number}: at least one image to calibrate on")
    samples, transform = (
        images_at(folder, channels_of(model), scale=declared(model)),
        evaluation_transform(model),
    )
    return torch.stack([transform(samples.image(index)) for index in _drawn(samples.files, number)])
