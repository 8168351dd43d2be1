"""Which families of timm take another attention: what is swapped, what is kept and why, audited
before and after.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from softless.attention import get
from softless.compare.record import record_path, write_csv
from softless.data.progress import track
from softless.errors import UsageError, unknown
from softless.words import table

FAMILIES = {
    "DeiT": "deit_tiny_patch16_224",
    "DeiT-III": "deit3_small_patch16_224",
    "FlexiViT": "flexivit_small",
    "EVA-02": "eva02_tiny_patch14_224",
    "DINOv3": "vit_small_patch16_dinov3",
    "XCiT": "xcit_nano_12_p16_224",
    "PVT-v2": "pvt_v2_b0",
    "PVT-v2, linear": "pvt_v2_b2_li",
    "CaiT": "cait_xxs24_224",
    "BEiT": "beit_base_patch16_224",
    "Swin": "swin_tiny_patch4_window7_224",
    "MaxViT": "maxvit_tiny_rw_224",
    "LeViT": "levit_128s",
    "EdgeNeXt": "edgenext_xx_small",
}
SEED = 0


@dataclass(frozen=True)
class Family:
    """One model: how many of its attention modules were swapped, and its softmax evaluations for
    one image.
    """

    family: str
    model: str
    swapped: int
    kept: int
    why: str  # of what is kept
    softmax_before: int
    softmax_after: int
    # of the branches, relative, their mean on a random image and weights; None where none was
    # swapped
    bare_error: float | None
    calibrated_error: float | None


@dataclass(frozen=True)
class Families:
    """All of them, for one operator."""

    op: str
    rows: tuple[Family, ...]
    recorded: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"op": self.op, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        head = ["family", "swapped", "kept", "softmax before", "after", "error", "kept because"]
        cells = [
            [
                row.family,
                row.swapped,
                row.kept,
                f"{row.softmax_before:,}",
                f"{row.softmax_after:,}",
                ""
                if row.bare_error is None
                else f"{row.bare_error:.3f} to {row.calibrated_error:.3f}",
                row.why,
            ]
            for row in self.rows
        ]
        footer = f"\n\nrecorded: {self.recorded}" if self.recorded else ""
        return (
            f"attention '{self.op}' in models of timm with random "
            f"weights\n\n{table(head, cells)}{footer}"
        )


def families(names: Sequence[str] = (), *, op: str | None = None, record: bool = False) -> Families:
    """Swap attention in one model of each family, with random weights, calibrated on two random
    images.

    Args:
        names: families; all by default.
        op: the operator; sima by default.
        record: also write benchmarks/swaps.csv of the repository.

    Raises:
        UsageError: an unknown family or operator, or `record` outside of the repository.
    """
    target = record_path("swaps") if record else None
    for name in names:
        if name not in FAMILIES:
            raise unknown("family of timm", name, FAMILIES)
    operator = get(op or "sima").name
    chosen = {name: FAMILIES[name] for name in names or FAMILIES}
    rows = tuple(
        _family(name, chosen[name], operator)
        for name in track(list(chosen), len(chosen), "swapping")
    )
    if target is not None:
        write_csv(target, [asdict(row) for row in rows])
    return Families(operator, rows, target)


def _family(family: str, name: str, op: str) -> Family:
    import timm

    from softless.convert import swap
    from softless.convert.adapters import sites
    from softless.measure import audit
    from softless.measure.cost import input_size_of

    torch.manual_seed(SEED)
    model = timm.create_model(name).eval()
    before = audit(model).kinds.get("softmax", 0)
    images = torch.randn(2, *input_size_of(model, None))
    try:
        report = swap(model, op, calibrate=images)
    except UsageError as refusal:
        _, _, why = str(refusal).partition(": ")
        return Family(family, name, 0, len(sites(model)), why, before, before, None, None)
    bare, calibrated = (
        sum(errors) / len(report.errors) for errors in zip(*report.errors.values(), strict=True)
    )
    return Family(
        family,
        name,
        len(report.swapped),
        len(report.kept),
        "; ".join(dict.fromkeys(report.kept.values())),
        before,
        audit(model).kinds.get("softmax", 0),
        round(bare, 4),
        round(calibrated, 4),
    )
