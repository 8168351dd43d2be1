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
    "SigLIP": "vit_base_patch16_siglip_224",
    "PiT": "pit_ti_224",
    "ViTamin": "vitamin_small_224",
    "MobileViT": "mobilevit_xxs",
    "XCiT": "xcit_nano_12_p16_224",
    "PVT-v2": "pvt_v2_b0",
    "PVT-v2, linear": "pvt_v2_b2_li",
    "Twins-PCPVT": "twins_pcpvt_small",
    "Twins-SVT": "twins_svt_small",
    "CrossViT": "crossvit_tiny_240",
    "CAFormer": "caformer_s18",
    "FastViT": "fastvit_sa12",
    "VOLO": "volo_d1_224",
    "Hiera": "hiera_tiny_224",
    "SAM 2 Hiera": "sam2_hiera_tiny",
    "NesT": "jx_nest_tiny",
    "TNT": "tnt_s_patch16_224",
    "ConViT": "convit_tiny",
    "CaiT": "cait_xxs24_224",
    "BEiT": "beit_base_patch16_224",
    "ViT, relative positions": "vit_relpos_small_patch16_224",
    "ViT, shared positions": "vit_srelpos_small_patch16_224",
    "SAM": "samvit_base_patch16_224",
    "EfficientFormer": "efficientformer_l1",
    "ViT, differential": "vit_dlittle_patch16_reg1_gap_256",
    "ViT, parallel": "vit_pwee_patch16_reg1_gap_256",
    "Swin": "swin_tiny_patch4_window7_224",
    "MaxViT": "maxvit_tiny_rw_224",
    "CoAtNet": "coatnet_pico_rw_224",
    "GC ViT": "gcvit_xxtiny",
    "DaViT": "davit_tiny",
    "TinyViT": "tiny_vit_5m_224",
    "MViTv2": "mvitv2_tiny",
    "LeViT": "levit_128s",
    "CoaT": "coat_lite_tiny",
    "EdgeNeXt": "edgenext_xx_small",
    "EfficientFormerV2": "efficientformerv2_s0",
    "EfficientViT (MSRA)": "efficientvit_m0",
    "EfficientViT (MIT)": "efficientvit_b0",
    "Next-ViT": "nextvit_small",
    "MobileNetV4": "mobilenetv4_hybrid_medium",
    "MobileViTv2": "mobilevitv2_050",
    "SwiftFormer": "swiftformer_xs",
    "Visformer": "visformer_tiny",
    "SHViT": "shvit_s1",
    "BoTNet": "botnet26t_256",
    "HaloNet": "halonet26t",
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
    by_force: int  # of the kept, how many `force` exchanges
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
        head = [
            "family",
            "swapped",
            "kept",
            "by force",
            "softmax before",
            "after",
            "error",
            "kept because",
        ]
        cells = [
            [
                row.family,
                row.swapped,
                row.kept,
                row.by_force,
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
        kept, forced = len(sites(model)), _by_force(model, op)
        return Family(family, name, 0, kept, forced, why, before, before, None, None)
    bare, calibrated = (
        sum(errors) / len(report.errors) for errors in zip(*report.errors.values(), strict=True)
    )
    return Family(
        family,
        name,
        len(report.swapped),
        len(report.kept),
        sum("(force= " in why for why in report.kept.values()),
        "; ".join(dict.fromkeys(report.kept.values())),
        before,
        audit(model).kinds.get("softmax", 0),
        round(bare, 4),
        round(calibrated, 4),
    )


def _by_force(model: torch.nn.Module, op: str) -> int:
    """How many modules of a model that is refused as it is are exchanged by force."""
    from softless.convert import swap

    try:
        return len(swap(model, op, force="*").swapped)
    except UsageError:
        return 0
