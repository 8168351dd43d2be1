"""`load_weights`: checkpoints in our layout, timm's, and those of the papers' codes, into any model that holds the same tensors.

A layout is a list of names to rename and of projections to join or to split. What is asked of a file is what the model has: nothing is
loaded in part, and every tensor of the file is either loaded or named with the reason why not.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from softless.errors import DataError, UsageError, located, need_module
from softless.models import digests
from softless.models.files import CONFIG, FILE, check_finite, read_tensors
from softless.models.nearest import build_of, nearest
from softless.models.pyramid import Pyramid, Stage

Tensors = dict[str, Tensor]
WEIGHTS = ("state_dict", "model", "module")  # under which training scripts keep them
AVERAGED = ("state_dict_ema", "model_ema")
PARTS = ("weight", "bias")
SHOWN = 6  # lines of a refusal


@dataclass(frozen=True)
class Layout:
    """Names of a published code: those that tell it, and what they are called here (regular expressions)."""

    name: str
    told_by: str
    renames: Sequence[tuple[str, str | Callable[[re.Match[str]], str]]] = ()


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "SOFT's code",
        r"block1\.0\.att\.mha\.W_q\.weight",
        (
            (r"^patch_embed(\d)\.proj\.(.*)", lambda m: f"stage{int(m[1]) - 1}.patch_embed.{m[2]}"),
            (r"^pos_embed(\d)()$", lambda m: f"stage{int(m[1]) - 1}.pos_embed"),
            (r"^block(\d)\.(.*)", lambda m: f"stage{int(m[1]) - 1}.blocks.{m[2]}"),
            (r"^cls_token$", "stage3.cls_token"),
            (r"\.att\.mha\.W_(q|v)\.", r".attn.\1."),
            (r"\.att\.mha\.ff\.", ".attn.proj."),
            (r"\.att\.mha\.attn\.Qlandmark_op\.weight", ".attn.learned.conv"),
            (r"\.att\.mha\.attn\.Qnorm_act\.0\.(weight|bias)", r".attn.learned.norm_\1"),
            (r"\.att\.mha\.attn\.conv\.", ".attn.v_conv."),
            (r"\.att\.ff(\d)\.", r".mlp.fc\1."),
            (r"\.att\.norm(\d)\.", r".norm\1."),
        ),
    ),
    Layout("CvT's code", r"stage0\.blocks\.0\.attn\.conv_proj_q\.conv\.weight"),
    Layout(
        "XCiT's code and SimA's",
        r"pos_embeder\.token_projection\.weight",
        ((r"^pos_embeder\.", "pos_embed."), (r"\.attn\.temperature$", ".attn.learned.temperature")),
    ),
    Layout("timm's XCiT", r"blocks\.0\.attn\.temperature", ((r"\.attn\.temperature$", ".attn.learned.temperature"),)),
)


@dataclass(frozen=True)
class Loaded:
    """What became of a file's tensors, by name; prints as a few lines."""

    layout: str
    loaded: int
    renamed: Mapping[str, str] = field(
        default_factory=dict
    )  # of the file -> of the model; joined and split ones among them
    resized: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)  # of the file, not loaded -> why
    kept: tuple[str, ...] = ()  # of the model, not in the file: the operator's own, or a new head

    def __str__(self) -> str:
        said = [
            f"{self.loaded} tensors loaded from {self.layout}; {len(self.renamed)} of the file's have another name here"
        ]
        said += [f"  resized  {name}: {before} to {after}" for name, (before, after) in self.resized.items()]
        said += [f"  left     {name}: {why}" for name, why in self.left.items()]
        said += [f"  kept     {name}: as the model had it" for name in self.kept]
        return "\n".join(said)


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Any], *, averaged: bool | None = None, head: Literal["same", "new"] = "same", allow_nonfinite: bool = False) -> Loaded:  # fmt: skip
    """Load a checkpoint into a model, whatever of these layouts it has: ours, timm's (ViT, DeiT, XCiT), or that of the code of SimA, XCiT, SOFT, CvT or DeiT.

    Files are read without executing anything in them, and compared with the digests that `save_weights` left beside them. Tables of positions
    are resized to the model's size. On an error the model is as it was.

    Args:
        model: from `softless.create_model` or timm, of the file's sizes.
        source: a folder of `save_weights`, a .safetensors file, a .pth or .pt file, or a state dict; also wrapped in "state_dict", "model" or "module", or with
            DataParallel's "module." before every name.
        averaged: of a file that holds averaged weights too, take those. None takes them where they lie beside "state_dict", as SOFT is evaluated.
        head: "same" loads the classifier; "new" leaves the model's, for other classes.
        allow_nonfinite: load NaN and infinity too.

    Raises:
        DataError: no file, one that is not a checkpoint or not as it was saved, or tensors with NaN or infinity.
        UsageError: tensors that do not fit, lack, or have no place; the message names the first few.
    """
    need_module(model, "load_weights")
    state, where = _unwrapped(_read(source), averaged)
    if not allow_nonfinite:
        check_finite(state.items(), where)
    layout = next((one for one in LAYOUTS if any(re.fullmatch(one.told_by, name) for name in state)), None)
    wanted = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    persistent = {name: wanted[name] for name in model.state_dict() if name in wanted}
    given, renamed = _as_here(state, layout, persistent)
    left: dict[str, str] = {}
    kept: list[str] = []
    if head == "new":
        for name in [name for name in persistent if re.match(r"head(_dist)?\.", name)]:
            kept.append(name)
            if given.pop(name, None) is not None:
                left[name] = 'head="new"'
    resized = _resize(model, given, persistent)
    own = {name for name in persistent if ".learned." in name}
    for name in [name for name in given if name not in persistent]:
        if why := _needless(name, given[name]):
            left[name] = why
            del given[name]
    missing = [name for name in persistent if name not in given and name not in kept]
    kept += [name for name in missing if name in own or name.endswith("num_batches_tracked")]
    problems = _problems(given, persistent, [name for name in missing if name not in kept], head)
    if problems:
        listed = "; ".join(problems[:SHOWN]) + (f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else "")
        raise UsageError(
            f"{where} does not fit this model ({layout.name if layout else 'read as ours or timm’s'}): {listed}"
            f"{_of_another(given, persistent)}"
        )
    with torch.no_grad():
        for name, value in given.items():
            persistent[name].copy_(value)
    return Loaded(layout.name if layout else "our layout or timm's", len(given), {old: new for old, new in renamed.items() if new in given}, resized, left, tuple(sorted(kept)))  # fmt: skip


def _read(source: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """What the file holds, and what to call it."""
    if isinstance(source, Mapping):
        return source, "the state dict"
    path = located(source)
    if path.is_dir():
        digests.check(path / CONFIG)
        path /= FILE
    return read_tensors(path, allow_nonfinite=True), str(path)


def _unwrapped(read: tuple[Mapping[str, Any], str], averaged: bool | None) -> tuple[Tensors, str]:
    """The tensors of a checkpoint, without wrappers and DataParallel's prefix."""
    held, where = read
    inside = [name for name in WEIGHTS if isinstance(held.get(name), Mapping)]
    means = [name for name in AVERAGED if isinstance(held.get(name), Mapping)]
    if averaged and not means:
        raise UsageError(f"{where} has no averaged weights (state_dict_ema or model_ema): leave averaged out")
    if means and (averaged or (averaged is None and means[0] == "state_dict_ema")):
        held, where = held[means[0]], f"{where} [{means[0]}]"
    elif inside:
        held, where = held[inside[0]], f"{where} [{inside[0]}]"
    tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    if not tensors:
        raise DataError(f"{where} holds no tensors under names: pass a state dict, or a file that holds one")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors, where


def _as_here(state: Tensors, layout: Layout | None, wanted: Mapping[str, Tensor]) -> tuple[Tensors, dict[str, str]]:
    """The tensors under the model's names, and which of them had another one."""
    found: Tensors = {}
    renamed: dict[str, str] = {}
    for name, value in state.items():
        new = name
        for pattern, to in layout.renames if layout else ():
            new = re.sub(pattern, to, new)
        found[new] = value
        if new != name:
            renamed[name] = new
    before = {new: old for old, new in renamed.items()}
    for name in wanted:
        if name in found:
            continue
        for joined, parts in _projections(name):
            if all(part in found for part in parts):
                found[name] = torch.cat([found.pop(part) for part in parts])
                renamed.update({before.get(part, part): name for part in parts})
                break
            if joined in found and len(parts) > 1:
                for part, rows in zip(parts, found[joined].chunk(len(parts)), strict=True):
                    found[part] = rows
                renamed[before.get(joined, joined)] = name
                del found[joined]
                break
    return found, renamed


def _projections(name: str) -> list[tuple[str, list[str]]]:
    """For a tensor that the model has: names of one projection for q, k, v together, and of its parts, either of which may be in a file."""
    match = re.fullmatch(r"(.*\.)(qkv|qv|q|k|v)\.(weight|bias)", name)
    if not match:
        return []
    start, what, part = match.groups()
    three, two = [f"{start}{one}.{part}" for one in "qkv"], [f"{start}{one}.{part}" for one in ("q", "kv")]
    if what == "qkv":
        return [("", three), ("", two)]
    if what == "qv":
        return [("", [f"{start}{one}.{part}" for one in "qv"])]
    return [(f"{start}qkv.{part}", three)]


def _resize(
    model: nn.Module, given: Tensors, wanted: Mapping[str, Tensor]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Tables of positions of another number of tokens, resized in place: bilinearly in a pyramid, as timm does elsewhere."""
    resized = {}
    for name in [name for name in given if name.rsplit(".", 1)[-1] == "pos_embed" and name in wanted]:
        old, new = given[name], wanted[name]
        if old.shape == new.shape or old.ndim != 3 or old.shape[-1] != new.shape[-1]:
            continue
        if isinstance(model, Pyramid):
            stage = cast("Stage", model.get_submodule(name.rsplit(".", 1)[0]))
            prefix, grid = stage.prefix, stage.pos_grid
            side = round((old.shape[1] - prefix) ** 0.5)
            if side * side + prefix != old.shape[1]:
                continue
            rest = old[:, prefix:].float().transpose(1, 2).unflatten(2, (side, side))
            map_ = F.interpolate(rest, grid, mode="bilinear", align_corners=False)
            given[name] = torch.cat([old[:, :prefix].float(), map_.flatten(2).transpose(1, 2)], dim=1)
        else:
            prefix = int(getattr(model, "num_prefix_tokens", 1))
            size = getattr(getattr(model, "patch_embed", None), "grid_size", None)
            if size is None or size[0] * size[1] + prefix != new.shape[1]:
                continue
            given[name] = resample_abs_pos_embed(old.float(), new_size=list(size), num_prefix_tokens=prefix)
        resized[name] = (tuple(old.shape), tuple(given[name].shape))
    return resized


def _needless(name: str, value: Tensor) -> str:
    """Why a tensor of the file may be left: it is a part of another operator that this one has no place for."""
    if name.endswith("num_batches_tracked"):
        return "a counter"
    if ".learned." in name:
        return f"{name.rsplit('.', 1)[-1]} {tuple(value.shape)} belongs to the operator that the file was trained with"
    return ""


def _of_another(given: Tensors, wanted: Mapping[str, Tensor]) -> str:
    """Which named model the file is of, or next to, where it is built otherwise than this one."""
    build = build_of(given)
    named = None if build is None or build == build_of(wanted) else nearest(given)
    if named is None:
        return ""
    name, same = named
    return f"; by its tensors the file is of '{name}'" if same else f"; the nearest named model is '{name}'"


def _problems(given: Tensors, wanted: Mapping[str, Tensor], missing: Sequence[str], head: str) -> list[str]:
    """What does not fit, in words; other classes first."""
    said = []
    for name, value in given.items():
        if name not in wanted:
            said.append(f"{name} {tuple(value.shape)} has no place in the model")
        elif value.shape != wanted[name].shape:
            way = (
                ' (other classes: pass head="new" to keep the model’s classifier)'
                if name.startswith("head") and head == "same"
                else ""
            )
            said.append(f"{name} is {tuple(value.shape)} in the file and {tuple(wanted[name].shape)} in the model{way}")
    said += [f"{name} {tuple(wanted[name].shape)} is missing" for name in missing]
    return sorted(said, key=lambda line: "other classes" not in line)
