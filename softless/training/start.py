"""Where a run's first weights come from, and which attention they were trained with.

A run and a folder of `save_weights` say it; timm's weights are of the host's own attention. Of a
bare file nothing says it: where the recipe names an operator for a host, the file is taken for the
host's own attention, which is told.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.xcit import XCA

from softless.attention.registry import get
from softless.convert.parts import attentions
from softless.errors import DataError, UsageError, unknown
from softless.experiment.files import read_best
from softless.experiment.folder import BEST, WEIGHTS
from softless.experiment.groups import ModelSpec
from softless.models import config, digests
from softless.models.construction import Construction
from softless.models.create import FOLDER, create_model
from softless.models.files import CONFIG, FILE
from softless.models.given import GIVEN
from softless.models.kept import operators_of
from softless.models.options import COMPANIONS
from softless.models.positions import two_sides
from softless.models.variants import BUILT_HERE, ENTRIES

SWAP = "softless.swap"  # under which the command of this name notes what it did to a file


@dataclass(frozen=True)
class Start:
    """Weights that a run starts from, as far as they tell."""

    title: str  # for people
    file: Path | None = None  # none: timm's
    host: str = ""  # empty: nothing says it
    op: str | None = None  # as `create_model` takes it
    args: Mapping[str, Any] = field(default_factory=dict)  # that the model was built with
    preparation: Mapping[str, Any] = field(default_factory=dict)  # mean, std and range of images
    pixels: tuple[int, int] | None = None  # height and width of the images
    classes: tuple[str, ...] = ()  # of the head, where a folder names them
    assumed: bool = False  # the attention is that of the host, for want of a word

    @property
    def operator(self) -> str:
        """The attention that they were trained with; empty where nothing says it."""
        return operator_of(self.host, self.op) if self.host else ""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the operator and companions that they were trained with."""
        names = {*COMPANIONS} | ({*get(self.operator).options} if self.operator else set())
        return {name: value for name, value in self.args.items() if name in names}


def start_of(spec: ModelSpec) -> Start | None:
    """Where the weights of a model come from; None where they are drawn.

    Raises:
        UsageError: there is nothing at `model.weights`.
        DataError: what describes the weights is damaged.
    """
    if spec.pretrained:
        return _of_timm(spec.name)
    if spec.weights is None:
        return None
    path = weights_path(spec.weights)
    start = _of_run(path) or _of_folder(path) or _of_swap(path)
    if start is not None:
        return start
    file = file_at(path)
    if spec.op is None or spec.recover == "none" or spec.name in {GIVEN, *ENTRIES}:
        return Start(str(path), file)
    own = own_operator(spec.name)
    return Start(str(path), file, spec.name if own else "", assumed=True)


def weights_path(weights: str) -> Path:
    """The place that `model.weights` names."""
    return Path(weights.removeprefix(FOLDER)).expanduser()


def file_at(path: Path) -> Path:
    """The file of tensors at a place: a file, a run's best epoch, or a folder of `save_weights`.

    Raises:
        UsageError: there is none.
    """
    file = path
    if path.is_dir():
        file = path / FILE if (path / FILE).is_file() else path / WEIGHTS
    if not file.is_file():
        raise UsageError(
            f"no weights at {file}: model.weights takes a .safetensors file, a run folder or a "
            "folder of save_weights"
        )
    return file


def host_of(name: str, op: str | None) -> tuple[str, str | None]:
    """The host behind a model's name, and the operator that it is built with."""
    entry = ENTRIES.get(name)
    return (name, op) if entry is None else (entry.variant.name, op or entry.op)


def operator_of(host: str, op: str | None) -> str:
    """The attention of a host with this operator; without one, its own. Empty where it has none."""
    return own_operator(host) if op is None else op


@cache
def own_operator(host: str) -> str:
    """The attention that a host has by itself; empty where it has none, or several."""
    if host in BUILT_HERE and host not in ENTRIES and not timm.is_model(host):
        return ""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = create_model(host)
    if any(isinstance(module, XCA) for module in model.modules()):
        return "xca"
    operators = operators_of(model)
    return operators[0] if len(operators) == 1 else ""


def _of_timm(name: str) -> Start:
    configuration = timm.get_pretrained_cfg(name)
    if configuration is None:
        raise unknown("model", name, timm.list_models())
    preparation = {"mean": configuration.mean, "std": configuration.std, "range": None}
    return Start(
        f"the weights that timm knows for {name}",
        host=name,
        preparation=preparation,
        pixels=two_sides(tuple(configuration.input_size)[1:]),
    )


def _of_run(path: Path) -> Start | None:
    """A run, or the best weights in its folder."""
    best = path / BEST if path.is_dir() else path.with_name(BEST)
    if not best.is_file() or not (path.is_dir() or path.name == WEIGHTS):
        return None
    content = read_best(best)
    args, name = dict(content["model_args"]), content["architecture"]
    op = args.pop("op", None)
    host, op = ("", None) if name == GIVEN else host_of(name, op)
    pixels = content.get("pixels") or content["image_size"]
    preparation = {key: content.get(key) for key in ("mean", "std", "range")}
    return Start(str(path), file_at(path), host, op, args, preparation, two_sides(pixels))


def _of_folder(path: Path) -> Start | None:
    """A folder of `save_weights`, or the file in it; the folders of others say nothing that is
    read.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / FILE).is_file() or (path.is_file() and path.name != FILE):
        return None
    if not (folder / CONFIG).is_file() or not (folder / digests.DIGESTS).is_file():
        return None
    digests.check(folder / CONFIG)
    stored = config.read(folder / CONFIG)
    preparing = stored.about
    preparation = {key: preparing[key] for key in ("mean", "std") if key in preparing}
    preparation["range"] = config.declared(preparing)
    size = stored.built.arguments.get("img_size") or (preparing.get("input_size") or [0, 0, 0])[1:]
    host, op = host_of(stored.built.name, stored.built.op)
    args, classes = dict(stored.built.arguments), tuple(preparing.get("label_names", ()))
    if stored.swaps:  # what `swap` did to it afterwards
        last = stored.swaps[-1]
        _check_whole(path, stored.built, last.layers)
        op, args = last.op, {**args, **last.options}
    return Start(str(path), folder / FILE, host, op, args, preparation, two_sides(size), classes)


def _check_whole(path: Path, built: Construction, layers: Sequence[str]) -> None:
    """Whether all attention of a stored model was exchanged.

    Raises:
        UsageError: some was kept, and a run builds models of one attention.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = create_model(built.name, built.op, **built.arguments)
    everywhere = set(attentions(model))
    if softmax := sorted(everywhere - set(layers)):
        raise UsageError(
            f"{path} holds a model whose attention was exchanged in a part of its layers, and "
            f"{softmax[0]} was kept: a run builds one attention for all; start from the model that "
            "it was made of"
        )


def _of_swap(path: Path) -> Start | None:
    """A file that the command `softless swap` wrote: all layers of a model with one operator."""
    if not path.is_file():
        return None
    note = _metadata(path).get(SWAP)
    if note is None:
        return None
    try:
        content = json.loads(note)
        all_layers = content["layers"] == ["*"]
        host, op = host_of(str(content["model"]), str(content["op"]))
        args = {**content.get("arguments", {}), **content["options"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: what `softless swap` noted of it cannot be read ({error}); write it anew"
        ) from error
    return Start(str(path), path, host, op, args) if all_layers else Start(str(path), path)


def _metadata(path: Path) -> Mapping[str, str]:
    """The notes of a .safetensors file; nothing of another."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}  # whoever reads the tensors says what is wrong


def exchanges(spec: ModelSpec, start: Start) -> bool:
    """Whether the weights are those of another attention than the model's."""
    own = operator_of(*host_of(spec.name, spec.op))
    return bool(own and start.operator and start.operator != own)
