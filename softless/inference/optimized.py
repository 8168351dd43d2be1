"""What `optimize` did to a model."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Optimized:
    """What `optimize` did to each part of a model, by path; prints as lines."""

    dtype: torch.dtype
    device: torch.device
    blocks: Mapping[str, str]  # path -> which branches add themselves to the residual
    packed: tuple[str, ...]  # linear layers
    folded: Mapping[str, str]  # path of a BatchNorm or layer scale -> where it went
    fused: Mapping[str, str]  # path of an activation -> the layer that computes it
    kept: Mapping[str, str]  # path -> why it is as it was
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        packed = (
            f"{len(self.packed)} linear layers packed" if self.packed else "no linear layer packed"
        )
        lines = [
            (
                f"{kind}: {packed}, {len(self.blocks)} blocks fused, {len(self.folded)} scales "
                f"folded, {len(self.kept)} parts left alone"
            )
        ]
        lines += _lines("block", self.blocks, ": ") + _lines("folded", self.folded, " into ")
        lines += _lines("fused", self.fused, " into ") + _lines("kept", self.kept, ": ")
        return "\n".join([*lines, *self.notes])


def _lines(word: str, entries: Mapping[str, str], between: str) -> list[str]:
    """A line for all paths that differ in their numbers alone and have the same told of them."""
    alike = Counter(
        re.sub(r"\b\d+\b", "*", f"{path}{between}{entry}") for path, entry in entries.items()
    )
    return [
        f"  {word:8} {line}" + (f" ({number} times)" if number > 1 else "")
        for line, number in alike.items()
    ]
