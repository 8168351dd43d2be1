"""Counts of the same model on the processor and on the meta device: a difference would say that a
count hangs on the machine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from softless.attention import OPERATORS
from softless.compare.record import record_path, write_csv
from softless.data.progress import track
from softless.errors import UsageError
from softless.measure.cost import Cost, cost
from softless.words import table

DEVICES = ("cpu", "meta")
# pixels, by host
SIZES = {"deit": (224, 384), "xcit": (224, 320), "cvt": (224, 288), "soft": (224, 256)}
# of each host, for all operators
SMALL = (
    "deit_tiny_patch16_224",
    "xcit_nano_12_p16_224",
    "cvt_13_224",
    "soft_pyramid_tiny_224",
)


@dataclass(frozen=True)
class Counted:
    """One model at one size."""

    model: str
    op: str
    pixels: int
    counts: dict[str, Cost]  # by device

    @property
    def differing(self) -> list[str]:
        """The counts that are not the same on all devices."""
        first, *remaining = (device_cost.to_dict() for device_cost in self.counts.values())
        return sorted({
            name
            for device_counts in remaining
            for name in first
            if first[name] != device_counts[name]
        })

    def row(self) -> dict[str, Any]:
        totals = self.counts[DEVICES[0]]
        return {
            "model": self.model,
            "op": self.op,
            "pixels": self.pixels,
            "macs": totals.macs,
            "exps": totals.exps,
            "activation_exps": totals.activation_exps,
            "activation_bytes": totals.activation_bytes,
            "peak_bytes": totals.peak_bytes,
            "differing": " ".join(self.differing),
            "uncounted": " ".join(totals.uncounted),
        }


@dataclass(frozen=True)
class Counts:
    """All of them."""

    models: tuple[Counted, ...]
    refused: tuple[str, ...] = ()  # operators that have no place in a host, as it says itself
    recorded: Path | None = None

    @property
    def wrong(self) -> list[Counted]:
        """Those that differ between devices, or in which a product may not be counted."""
        return [
            model for model in self.models if model.differing or model.counts[DEVICES[0]].uncounted
        ]

    @property
    def exit_code(self) -> int:
        return 1 if self.wrong else 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": [model.row() for model in self.models],
            "wrong": len(self.wrong),
            "refused": list(self.refused),
            "exit_code": self.exit_code,
        }

    def __str__(self) -> str:
        head = ["model", "op", "pixels", "multiply-adds [G]", "differing", "uncounted"]
        rows = [
            [
                row["model"],
                row["op"],
                row["pixels"],
                f"{row['macs'] / 1e9:.3f}",
                row["differing"],
                row["uncounted"],
            ]
            for row in (model.row() for model in self.models)
        ]
        summary = (
            f"{len(self.models)} counted on {' and '.join(DEVICES)}, {len(self.wrong)} differ "
            "or miss a formula"
        )
        return "\n".join([
            table(head, rows),
            "",
            *self.refused,
            summary,
            *([f"recorded: {self.recorded}"] if self.recorded else []),
        ])


def counts(names: Sequence[str] = (), *, ops: Sequence[str] = (), record: bool = False) -> Counts:
    """Count every registered model with its own operator, and one of each host with every operator,
    at two sizes.

    Args:
        names: registered models; all by default.
        ops: operators for one small model of each host; all by default.
        record: also write benchmarks/counts.csv of the repository.

    Returns:
        The counts; exit_code 1 where one differs between devices, or an operator that may hold a
        product has no formula.

    Raises:
        UsageError: an unknown name.
    """
    from softless.models.variants import check_host

    target = record_path("counts") if record else None
    planned = list(dict.fromkeys(_planned(names, ops)))
    for model, op in planned:
        check_host(model, op)
    tried = [
        outcome
        for model, op in track(planned, len(planned), "counting")
        for outcome in _counted(model, op)
    ]
    models = tuple(outcome for outcome in tried if isinstance(outcome, Counted))
    if target is not None:
        write_csv(target, [counted.row() for counted in models])
    return Counts(
        models,
        tuple(dict.fromkeys(outcome for outcome in tried if isinstance(outcome, str))),
        target,
    )


def _planned(names: Sequence[str], ops: Sequence[str]) -> Iterator[tuple[str, str]]:
    from lab.sizes import listed
    from softless.compare.models import host_and_operator
    from softless.experiment.groups import ModelSpec

    for name in names or listed():
        yield host_and_operator(ModelSpec(name))
    for host in () if names and not ops else SMALL:
        for op in ops or OPERATORS:
            yield host, op


def _counted(name: str, op: str) -> Iterator[Counted | str]:
    """A model at each size, or why there is none: the operator may have no place in the host.

    Raises:
        UsageError: the model is refused on one device alone.
    """
    for pixels in next(pixels for host, pixels in SIZES.items() if host in name):
        outcomes = {device: _on(device, name, op, pixels) for device in DEVICES}
        counted = {
            device: outcome for device, outcome in outcomes.items() if isinstance(outcome, Cost)
        }
        if counted and len(counted) < len(DEVICES):
            raise UsageError(f"{name} with {op} is refused on some devices: {outcomes}")
        yield (
            Counted(name, op, pixels, counted)
            if counted
            else f"{name} with {op}: {outcomes[DEVICES[0]]}"
        )


def _on(device: str, name: str, op: str, pixels: int) -> Cost | str:
    """The counts of a model, or why there are none."""
    from softless.models import create_model

    # a ViT's table of positions is of one size
    size: dict[str, Any] = {"img_size": pixels} if "deit" in name else {}
    try:
        with torch.device(device):
            model = create_model(name, op=op, **size)
        return cost(model, pixels)
    except UsageError as error:
        return str(error)
