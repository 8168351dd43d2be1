"""The size columns of the papers' tables: what they print, and what the models measure here."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import torch

from softless.data.progress import track
from softless.errors import unknown
from softless.measure.cost import cost
from softless.models.create import create_model
from softless.tasks.detection import model as detectors
from softless.tasks.loaded import assemble
from softless.tasks.segmentation import model as segmenters
from softless.words import table


@dataclass(frozen=True)
class PaperRow:
    """One row of a table, as printed, and the model that stands for it here."""

    group: str
    name: str
    params: str  # as printed
    flops: str  # as printed: multiply-adds
    exps: str = ""  # as printed: the order of growth, or 0
    model: str = ""  # "" where neither softless nor timm has it
    args: Mapping[str, Any] = field(default_factory=dict)
    size: int = 224
    note: str = ""
    task: str = (
        # of dense prediction: the backbone stands in a detector or segmenter, and parameters alone
        # are counted
        ""
    )
    head: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PaperSizes:
    """A table of a paper."""

    title: str
    rows: tuple[PaperRow, ...]


SINGLE = {"op": "sima", "num_heads": 1}
ONE_QUERY = (
    "softmax class attention needs the query of the class token alone, the published code "
    "projects all"
)
SLIP = "the paper's slip: its Table 1 gives the same model 26M"
CHEAPER = "the cheaper order of products"
TWINS = "3.7 is not this model's: its own paper prints 2.9"
NOT_KNOWN = "what the printed count has beyond the model is not known"
AUXILIARY = (
    "the printed number has mmsegmentation's auxiliary head, 0.7M to 0.8M, which serves "
    "training alone"
)
PYRAMID = "soft_pyramid_tiny_224"


def _attentions(group: str) -> tuple[PaperRow, ...]:
    """Rows that the papers' Table 2 share: attentions in SOFT's Tiny pyramid."""
    return (
        PaperRow(
            group, "Transformer", "13M", "3.9B", "HN^2", PYRAMID, {"op": "softmax"}, note=NOT_KNOWN
        ),
        PaperRow(
            group,
            "Linformer",
            "13M",
            "1.9B",
            "HN",
            PYRAMID,
            {"op": "linformer", "reduction": "grid"},
            note="a strided convolution makes its keys and values",
        ),
        PaperRow(group, "Performer", "13M", "2.2B", "ND", PYRAMID, {"op": "performer"}),
        PaperRow(
            group,
            "Nystroemformer",
            "13M",
            "2.0B",
            "HN",
            PYRAMID,
            {"op": "nystrom", "pooling": "grid"},
            note="counted with the steps of its inverse and the sums that make its landmarks",
        ),
        PaperRow(group, "SOFT", "13M", "1.9B", "HN^2", "soft_tiny_224"),
    )


COCO = 80  # classes


def _mask_rcnn(
    name: str, params: str, exps: str, model: str, args: Mapping[str, Any] | None = None
) -> PaperRow:
    head = {"head": "maskrcnn", "classes": COCO}
    return PaperRow(
        "Mask R-CNN", name, params, "", exps, model, args or {}, 0, "", "detection", head
    )


def _retinanet(name: str, params: str, model: str) -> PaperRow:
    return PaperRow(
        "RetinaNet",
        name,
        params,
        "",
        "",
        model,
        {},
        0,
        "",
        "detection",
        {"head": "retinanet", "classes": COCO},
    )


def _upernet(name: str, params: str, model: str) -> PaperRow:
    head = {"decoder": "upernet", "width": 512, "classes": 150}
    return PaperRow("UperNet", name, params, "", "", model, {}, 0, AUXILIARY, "segmentation", head)


TABLES: Mapping[str, PaperSizes] = {
    "sima-table1": PaperSizes(
        "SimA (arXiv:2206.08898), Table 1: ImageNet classification",
        (
            PaperRow("CNN", "ResNet18", "12M", "1.8B", "0", "resnet18"),
            PaperRow(
                "transformer",
                "XCiT-T24/16",
                "12M",
                "2.3B",
                "HD^2",
                "xcit_tiny_24_p16_224",
                {"op": "xca"},
                note=ONE_QUERY,
            ),
            PaperRow(
                "transformer",
                "XCiT-T24/16 -> SimA",
                "12M",
                "2.3B",
                "0",
                "sima_xcit_tiny_24_p16_224",
            ),
            PaperRow(
                "transformer",
                "XCiT-T12/8",
                "7M",
                "4.8B",
                "HD^2",
                "xcit_tiny_12_p8_224",
                {"op": "xca"},
                note=ONE_QUERY,
            ),
            PaperRow(
                "transformer", "XCiT-T12/8 -> SimA", "7M", "4.8B", "0", "sima_xcit_tiny_12_p8_224"
            ),
            PaperRow(
                "CNN",
                "ResNet50 RA",
                "25M",
                "3.9B",
                "0",
                "resnet50",
                note="SOFT's Table 3 prints 4.1 for the same model",
            ),
            PaperRow(
                "CNN",
                "EfficientNet-B5 RA",
                "30M",
                "9.9B",
                "0",
                "efficientnet_b5",
                size=456,
                note="timm's model; why it counts more is not known",
            ),
            PaperRow("CNN", "RegNetY-4GF", "21M", "4.0B", "0", "regnety_040"),
            PaperRow("CNN", "ConvNeXt-T", "29M", "4.5B", "0", "convnext_tiny"),
            PaperRow("MLP", "ResMLP-S24", "30M", "6.0B", "0", "resmlp_24_224"),
            PaperRow("MLP", "MS-MLP-T", "28M", "4.9B", "0"),
            PaperRow("MLP", "Hire-MLP-S", "33M", "4.2B", "0"),
            PaperRow(
                "hybrid", "Twins-SVT-S", "24M", "3.7B", "HM^2N", "twins_svt_small", note=TWINS
            ),
            PaperRow("hybrid", "CvT-13", "20M", "4.5B", "HN^2", "cvt_13_224"),
            PaperRow(
                "hybrid", "CvT-13 -> SimA", "20M", "4.5B", "0", "sima_cvt_13_224", note=CHEAPER
            ),
            PaperRow(
                "transformer",
                "Swin-T",
                "29M",
                "4.5B",
                "HM^2N",
                "swin_tiny_patch4_window7_224",
                note="28.3M, which Swin's own paper prints as 29M too",
            ),
            PaperRow("transformer", "PVT-S", "24M", "4.0B", "HN^2/R"),
            PaperRow("transformer", "T2T-ViT-14", "21M", "5.2B", "HN^2"),
            PaperRow("transformer", "CaiT-XS24", "26M", "19.3B", "HN^2", "cait_xs24_384", size=384),
            PaperRow("transformer", "SOFT-S", "24M", "3.3B", "HN^2", "soft_small_224"),
            PaperRow("transformer", "DeiT-S", "22M", "4.6B", "HN^2", "deit_small_patch16_224"),
            PaperRow(
                "transformer",
                "XCiT-S12/16",
                "26M",
                "4.8B",
                "HD^2",
                "xcit_small_12_p16_224",
                {"op": "xca"},
                note=ONE_QUERY,
            ),
            PaperRow(
                "transformer",
                "DeiT-S -> SimA",
                "22M",
                "4.6B",
                "0",
                "sima_deit_small_patch16_224",
                note=CHEAPER,
            ),
            PaperRow(
                "transformer",
                "XCiT-S12/16 -> SimA",
                "26M",
                "4.8B",
                "0",
                "sima_xcit_small_12_p16_224",
            ),
            PaperRow(
                "variation",
                "DeiT-S -> SimA, single head",
                "22M",
                "4.6B",
                "0",
                "deit_small_patch16_224",
                SINGLE,
            ),
            PaperRow(
                "variation",
                "DeiT-S -> SimA, ReLU for GELU",
                "22M",
                "4.6B",
                "0",
                "sima_deit_small_patch16_224",
                {"act": "relu"},
                note=CHEAPER,
            ),
        ),
    ),
    "sima-table2": PaperSizes(
        "SimA (arXiv:2206.08898), Table 2: linear attention",
        (
            *_attentions("pyramid"),
            PaperRow(
                "XCiT",
                "XCiT-T20/16 -> SimA",
                "12M",
                "1.9B",
                "0",
                "sima_xcit_tiny_20_p16_224",
                note="no such model in the published code; the size printed is not its own",
            ),
            PaperRow(
                "XCiT",
                "XCiT with Efficient Attention",
                "22M",
                "4.8B",
                "ND",
                "xcit_small_12_p16_224",
                {"op": "efficient"},
                note=SLIP,
            ),
            PaperRow(
                "XCiT",
                "cosFormer without re-weighting",
                "22M",
                "4.8B",
                "0",
                "xcit_small_12_p16_224",
                {"op": "cosformer", "reweight": False},
                note=SLIP,
            ),
            PaperRow(
                "XCiT",
                "XCiT-S12/16 -> SimA",
                "22M",
                "4.8B",
                "0",
                "sima_xcit_small_12_p16_224",
                note=SLIP,
            ),
        ),
    ),
    "sima-table3": PaperSizes(
        "SimA (arXiv:2206.08898), Table 3: Mask R-CNN on COCO, parameters",
        (
            _mask_rcnn("XCiT-S12/16", "44.3M", "yes", "xcit_small_12_p16_224", {"op": "xca"}),
            _mask_rcnn("XCiT-S12/8", "43.1M", "yes", "xcit_small_12_p8_224", {"op": "xca"}),
            _mask_rcnn("XCiT-S12/16 -> SimA", "44.3M", "no", "sima_xcit_small_12_p16_224"),
            PaperRow(
                "Mask R-CNN",
                "Swin-T",
                "47.8M",
                "",
                "yes",
                "swin_tiny_patch4_window7_224",
                {"strict_img_size": False},
                0,
                "",
                "detection",
                {"head": "maskrcnn", "classes": COCO},
            ),
            PaperRow("Mask R-CNN", "ResNet50", "44.2M", "", "no"),
            PaperRow("Mask R-CNN", "PVT-Small", "44.1M", "", "yes"),
            PaperRow("Mask R-CNN", "ViL-Small", "45.0M", "", "yes"),
        ),
    ),
    "sima-table4": PaperSizes(
        "SimA (arXiv:2206.08898), Table 4: backbones of self-supervision, without their heads",
        (
            PaperRow("DINO", "ResNet50", "23M", "4.1B", "no", "resnet50", {"num_classes": 0}),
            PaperRow(
                "DINO", "ResMLP-S24", "30M", "6.0B", "no", "resmlp_24_224", {"num_classes": 0}
            ),
            PaperRow(
                "DINO",
                "ViT-S/16",
                "22M",
                "4.6B",
                "yes",
                "deit_small_patch16_224",
                {"num_classes": 0},
            ),
            PaperRow(
                "DINO",
                "XCiT-S12/16",
                "26M",
                "4.9B",
                "yes",
                "xcit_small_12_p16_224",
                {"op": "xca", "num_classes": 0},
                note=ONE_QUERY,
            ),
            PaperRow(
                "DINO",
                "XCiT-S12/16 -> SimA",
                "26M",
                "4.9B",
                "no",
                "sima_xcit_small_12_p16_224",
                {"num_classes": 0},
            ),
            PaperRow(
                "MoBY",
                "Swin-T",
                "29M",
                "4.5B",
                "yes",
                "swin_tiny_patch4_window7_224",
                {"num_classes": 0},
                note="the printed number is that of the classifier",
            ),
        ),
    ),
    "soft-table2": PaperSizes(
        "SOFT (arXiv:2110.11945), Table 2: attentions in the Tiny pyramid", _attentions("pyramid")
    ),
    "soft-table3": PaperSizes(
        "SOFT (arXiv:2110.11945), Table 3: ImageNet classification",
        (
            PaperRow(
                "tiny",
                "ResNet-18",
                "11M",
                "1.9G",
                model="resnet18",
                note="SimA's Table 1 prints 1.8 for the same model",
            ),
            PaperRow("tiny", "PVT-Tiny", "13M", "1.9G"),
            PaperRow("tiny", "CoaT-Lite Mini", "11M", "2.0G", model="coat_lite_mini"),
            PaperRow("tiny", "SOFT-Tiny", "13M", "1.9G", model="soft_tiny_224"),
            PaperRow("small", "ResNet-50", "25M", "4.1G", model="resnet50"),
            PaperRow("small", "PVT-Small", "24M", "4.0G"),
            PaperRow("small", "DeiT-Small", "22M", "4.6G", model="deit_small_patch16_224"),
            PaperRow("small", "T2T-ViTt-14", "21M", "5.2G"),
            PaperRow("small", "Twins-SVT-S", "24M", "3.7G", model="twins_svt_small", note=TWINS),
            PaperRow("small", "SOFT-Small", "24M", "3.3G", model="soft_small_224"),
            PaperRow("medium", "ResNet-101", "44M", "7.9G", model="resnet101"),
            PaperRow("medium", "PVT-Medium", "44M", "7.0G"),
            PaperRow("medium", "SOFT-Medium", "45M", "7.2G", model="soft_medium_224"),
            PaperRow("large", "ResNet-152", "60M", "11.6G", model="resnet152"),
            PaperRow("large", "PVT-Large", "61M", "10.1G"),
            PaperRow("large", "T2T-ViTt-24", "64M", "13.2G"),
            PaperRow("large", "SOFT-Large", "64M", "11.0G", model="soft_large_224"),
        ),
    ),
    "soft-dense": PaperSizes(
        "Normalised SOFT (arXiv:2207.03341; README of the published code): detectors and "
        "segmenters, parameters",
        (
            _retinanet("Tiny, RetinaNet", "23M", "softnorm_tiny_224"),
            _retinanet("Small, RetinaNet", "34M", "softnorm_small_224"),
            _retinanet("Medium, RetinaNet", "55M", "softnorm_medium_224"),
            _retinanet("Large, RetinaNet", "74M", "softnorm_large_224"),
            _mask_rcnn("Tiny, Mask R-CNN", "33M", "", "softnorm_tiny_224"),
            _mask_rcnn("Small, Mask R-CNN", "44M", "", "softnorm_small_224"),
            _mask_rcnn("Medium, Mask R-CNN", "65M", "", "softnorm_medium_224"),
            _mask_rcnn("Large, Mask R-CNN", "84M", "", "softnorm_large_224"),
            _upernet("Small, UperNet", "54M", "softnorm_small_224"),
            _upernet("Medium, UperNet", "76M", "softnorm_medium_224"),
        ),
    ),
    "soft-readme": PaperSizes(
        "SOFT: sizes in the README of the published code",
        (
            PaperRow("SOFT", "Tiny", "13M", "1.9G", model="soft_tiny_224"),
            PaperRow("SOFT", "Small", "24M", "3.3G", model="soft_small_224"),
            PaperRow(
                "SOFT",
                "Small, as the code builds it",
                "24M",
                "3.3G",
                model="soft_small_code_224",
                note="the code's third stage has 20 blocks, the paper's 7",
            ),
            PaperRow("SOFT", "Medium", "45M", "7.2G", model="soft_medium_224"),
            PaperRow("SOFT", "Large", "64M", "11.0G", model="soft_large_224"),
            PaperRow("SOFT", "Huge", "87M", "16.3G", model="soft_huge_224"),
        ),
    ),
}


@dataclass(frozen=True)
class Measured:
    """A row beside what was counted; the counts are None where there is no such model here."""

    paper: str
    group: str
    name: str
    printed_params: str
    printed_flops: str
    printed_exps: str
    model: str
    options: str
    size: int
    parameters: int | None
    macs: int | None
    exps: int | None  # of attention
    activation_exps: int | None  # of activations and positions
    note: str


@dataclass(frozen=True)
class PaperTable:
    """A regenerated table; prints with printed and measured columns side by side."""

    title: str
    rows: tuple[Measured, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"title": self.title, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        exps = any(row.printed_exps for row in self.rows)
        head = [
            "row",
            "params",
            "measured",
            "FLOPs",
            "measured",
            *(["exps"] if exps else []),
            "measured",
            "other",
            "model",
        ]
        cells = []
        for row in self.rows:
            counts = ["not here"] * 4
            if row.parameters is not None and row.macs is not None:
                counts = [
                    f"{row.parameters:,}",
                    f"{row.macs / 1e9:.3f} G",
                    f"{row.exps:,}",
                    f"{row.activation_exps:,}",
                ]
            elif row.parameters is not None:
                counts = [f"{row.parameters:,}", *["not counted"] * 3]
            printed = [row.printed_exps] if exps else []
            model_and_options = " ".join(filter(None, (row.model, row.options)))
            cells.append([
                row.name,
                row.printed_params,
                counts[0],
                row.printed_flops,
                counts[1],
                *printed,
                *counts[2:],
                model_and_options,
            ])
        notes = [f"{row.name}: {row.note}" for row in self.rows if row.note]
        return "\n".join([self.title, "", table(head, cells), "", LEGEND, *notes])


LEGEND = (
    "FLOPs are multiply-adds. Measured exponentials are those of attention, in one image; "
    "'other' are transcendentals of activations and positions."
)


def paper_table(name: str) -> PaperTable:
    """Count every model of a paper's table that softless or timm has.

    Args:
        name: sima-table1, sima-table2, sima-table3, sima-table4, soft-table2, soft-table3,
            soft-readme or soft-dense.

    Raises:
        UsageError: unknown table.
    """
    if name not in TABLES:
        raise unknown("table", name, TABLES)
    chosen = TABLES[name]
    rows = tuple(_measured(name, row) for row in track(chosen.rows, len(chosen.rows), "counting"))
    return PaperTable(chosen.title, rows)


def _measured(paper: str, row: PaperRow) -> Measured:
    parameters, macs, exps, activation_exps = _of_parts(row) if row.task else _of_model(row)
    options = ", ".join(f"{name}={value}" for name, value in {**row.args, **row.head}.items())
    return Measured(
        paper,
        row.group,
        row.name,
        row.params,
        row.flops,
        row.exps,
        row.model,
        options,
        row.size,
        parameters,
        macs,
        exps,
        activation_exps,
        "; ".join(filter(None, (_in_parts(row), row.note))),
    )


def _of_model(row: PaperRow) -> tuple[int | None, ...]:
    return counted(row.model, row.size, **row.args) if row.model else (None,) * 4


def _of_parts(row: PaperRow) -> tuple[int | None, ...]:
    return sum(_parts(row).values()), None, None, None


def _in_parts(row: PaperRow) -> str:
    """What a detector or segmenter is made of."""
    counts = _parts(row) if row.task else {}
    return ", ".join(f"{part} {number / 1e6:.2f}M" for part, number in counts.items() if number)


@cache
def _built(task: str, model: str, args: str, head: str) -> dict[str, int]:

    network: Any = assemble(task, model, json.loads(args), json.loads(head))
    return (
        detectors.parameter_parts(network)
        if task == "detection"
        else segmenters.parameter_parts(network)
    )


def _parts(row: PaperRow) -> dict[str, int]:
    return _built(row.task, row.model, json.dumps(dict(row.args)), json.dumps(dict(row.head)))


def counted(name: str, size: int = 224, **args: Any) -> tuple[int, int, int, int]:
    """Parameters, multiply-adds, exponentials of the attention, and those of everything else; on
    the meta device, which holds no numbers.
    """
    with torch.device("meta"):
        model = create_model(name, **args)
    totals = cost(model, size)
    return totals.parameters, totals.macs, totals.exps, totals.activation_exps
