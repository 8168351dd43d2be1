"""Which named model a state dict is of, by its tensors alone."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from softless.models.host import Host
from softless.models.hosts import HOSTS
from softless.models.variants import VARIANTS, Variant


class Build(NamedTuple):
    """How a model is built, as far as names and shapes of its tensors tell."""

    host: str
    depths: tuple[int, ...]  # blocks of each stage; of ViT and XCiT one number
    widths: tuple[int, ...]  # of the tokens of each stage
    patch: int | None  # pixels of a patch's side, of ViT and XCiT


def build_of(state: Mapping[str, Tensor]) -> Build | None:
    """The build behind tensors under our names; None where they are of no host that is known."""
    blocks: dict[str, set[str]] = {}
    for name in state:
        if match := re.match(r"((?:stage\d+\.)?)blocks\.(\d+)\.", name):
            blocks.setdefault(match[1], set()).add(match[2])
    stages = sorted(blocks)
    depths = tuple(len(blocks[stage]) for stage in stages)
    norms = [state.get(f"{stage}blocks.0.norm1.weight") for stage in stages]
    widths = tuple(norm.shape[0] for norm in norms if norm is not None)
    if not depths or len(widths) != len(depths):
        return None
    host = next((host for host in HOSTS.values() if _tells(host, state)), None)
    if host is None:
        return None
    patch = None if host.patch_of is None else host.patch_of(state)
    if host.patch_of is not None and patch is None:
        return None
    return Build(host.name, depths, widths, patch)


def _tells(host: Host, state: Mapping[str, Tensor]) -> bool:
    """Whether a tensor of a state dict is of this host."""
    return any(re.fullmatch(host.tensor, name) for name in state)


def nearest(state: Mapping[str, Tensor]) -> tuple[str, bool] | None:
    """The named model whose build these tensors have, or the closest of the same host, and whether
    it is the same.
    """
    build = build_of(state)
    rows = [] if build is None else [row for row in VARIANTS if row.host == build.host]
    if build is None or not rows:
        return None
    far = {row.name: _distance(build, row.arguments) for row in rows}
    row = min(rows, key=lambda variant: far[variant.name])
    return _shown(row), far[row.name] == 0


def _shown(row: Variant) -> str:
    return row.entry(row.operators[0]) if row.operators else row.name


def _distance(build: Build, arguments: Mapping[str, Any]) -> float:
    depths = arguments["depths"] if "depths" in arguments else (arguments["depth"],)
    widths = arguments.get("embed_dims") or (
        (arguments["embed_dim"],) if "embed_dim" in arguments else build.widths
    )
    if len(depths) != len(build.depths) or len(widths) != len(build.widths):
        return float("inf")
    ratios = [
        abs(size / expected - 1)
        for size, expected in zip((*build.depths, *build.widths), (*depths, *widths), strict=True)
    ]
    return sum(ratios) + (build.patch != arguments.get("patch_size", build.patch))
