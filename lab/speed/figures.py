"""The figures by name: what work each is about, how it is measured, what its chart shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lab.charts import Line, Panel
from lab.speed import block, memory, models, optimized, products, stream, training
from lab.speed.crossover import Crossover, crossovers
from lab.speed.work import Case, Work, words
from softless.compare.timing import Spread

MEASURES = {
    "time": "milliseconds an image",
    "memory": "most memory held [MiB]",
}


# which colour of the charts a rival has, the same in every figure
LOOKS: Mapping[str, int] = {
    "bare": 0,
    "sima": 1,
    "published": 2,
    "softmax": 3,
    "xca": 4,
    "compiled": 5,
    "published_tokens": 5,
    "published_channels": 5,
    "softmax_matrix": 6,
    "soft": 0,
    "softnorm": 2,
    "linformer": 5,
    "nystrom": 7,
    "performer": 8,
    "merged": 1,
    "apart": 2,
    "packed": 3,
    "inside": 1,
    "seqnorm": 4,
    "seqnorm_torch": 5,
    "streamed": 4,
    "linear": 0,
    "optimized": 3,
    "openvino_published": 5,
    "openvino_softmax": 6,
    "openvino_bare": 7,
    "openvino_linear": 8,
    "openvino_xca": 6,
}


@dataclass(frozen=True)
class Figure:
    """One table with its chart."""

    title: str
    works: tuple[Work, ...]
    measure: Callable[[Work, float], Case]
    axis: str  # pixels, tokens or dim: what the chart runs over
    bases: tuple[str, ...] = ()
    # time, memory, or the rival to which the others' time is told
    drawn: tuple[str, ...] = ("time",)
    against: str | None = None  # whose being faster is told: softmax
    apart: tuple[str, ...] = ("dtype",)  # what has a panel each
    note: Callable[[], str] = str  # what there is to say of rivals that could not take part

    def crossovers(self, cases: Sequence[Case]) -> list[Crossover]:
        """Where softmax is the faster choice."""
        return (
            crossovers(cases, "sima", self.against, self.axis, self.apart) if self.against else []
        )

    def panels(self, cases: Sequence[Case], marks: Sequence[Crossover]) -> list[Panel]:
        """What `charts.draw_panels` draws: a panel for each thing drawn and each setting, where it
        has more than one size.
        """
        groups: dict[tuple[object, ...], list[Case]] = {}
        for case in cases:
            groups.setdefault(tuple(getattr(case.work, name) for name in self.apart), []).append(
                case
            )
        lines = {setting: group for setting, group in groups.items() if len(group) > 1} or groups
        return [
            self._panel(setting, group, quantity, marks)
            for quantity in self.drawn
            for setting, group in lines.items()
        ]

    def _panel(
        self,
        setting: tuple[object, ...],
        cases: Sequence[Case],
        quantity: str,
        marks: Sequence[Crossover],
    ) -> Panel:
        named_setting = dict(zip(self.apart, setting, strict=True))
        lines = []
        for name in dict.fromkeys(name for case in cases for name in case.rivals):
            points = [
                (getattr(case.work, self.axis), spread)
                for case in cases
                if (spread := _of(case, name, quantity)) is not None
            ]
            if points:
                lines.append(
                    Line(name, tuple(sorted(points, key=lambda point: point[0])), LOOKS[name])
                )
        panel_marks = [
            mark for mark in marks if mark.setting == named_setting and quantity != "memory"
        ]
        return Panel(
            title=f"{MEASURES.get(quantity, f'time, {quantity} = 1')}, {words(named_setting)}",
            axis={"pixels": "image size [pixels along a side]", "tokens": "tokens", "dim": "width"}[
                self.axis
            ],
            lines=tuple(lines),
            marks=tuple(
                (mark.at, f"← {mark.rival} is faster")
                for mark in panel_marks
                if mark.at is not None
            ),
        )


def _of(case: Case, name: str, quantity: str) -> Spread | None:
    """What is drawn of a rival: time of one image, peak memory, or the ratio to another rival."""
    if quantity == "memory":
        return Spread.of([case.peaks[name] / 2**20]) if name in case.peaks else None
    if case.timings is None or name not in case.timings.seconds:
        return None
    if quantity != "time":
        return case.ratio(name, quantity)
    return Spread.of([1e3 * seconds / case.work.batch for seconds in case.timings.seconds[name]])


FIGURES: Mapping[str, Figure] = {
    "block": Figure(
        "The attention block: width 384, 8 heads",
        block.WORKS,
        block.measure,
        "tokens",
        bases=("bare", "sima"),
        drawn=("bare",),
        against="softmax",
        apart=("dtype", "batch"),
    ),
    "compiled": Figure(
        "The published block under torch.compile",
        block.COMPILED,
        block.measure_compiled,
        "tokens",
        bases=("bare", "sima"),
        drawn=("bare",),
    ),
    "deit": Figure(
        "DeiT-S over the image size",
        models.DEIT_WORKS,
        models.measure_deit,
        "pixels",
        bases=("bare", "sima"),
        against="softmax",
        apart=("dtype", "batch"),
    ),
    "xcit": Figure(
        "XCiT-S12/16 over the image size",
        models.XCIT_WORKS,
        models.measure_xcit,
        "pixels",
        bases=("sima",),
        against="xca",
        apart=("dtype", "batch"),
    ),
    "training": Figure(
        "A training step of the attention block: width 384, 8 heads",
        training.WORKS,
        training.measure,
        "tokens",
        bases=("published", "bare"),
        drawn=("time", "memory"),
        against="softmax",
    ),
    "tokens": Figure(
        "Attention alone over the number of tokens: width 384, 6 heads",
        products.TOKENS_WORKS,
        products.over_tokens,
        "tokens",
        bases=("sima", "published_tokens"),
        against="softmax",
    ),
    "width": Figure(
        "Attention alone over the width: 196 tokens",
        products.WIDTH_WORKS,
        products.over_width,
        "dim",
        bases=("sima", "published_channels"),
        against="xca",
        apart=("dtype", "heads"),
    ),
    "merging": Figure(
        "The attention block with the operator's matrix taken into its output projection, and "
        "apart: width 384, 8 heads",
        block.MERGING,
        block.measure_merging,
        "tokens",
        bases=("apart", "packed"),
        drawn=("apart",),
        apart=("dtype", "batch"),
    ),
    "projected": Figure(
        "A training step of the attention block with both projections taken into its attention, "
        "and apart: width 384, 8 heads",
        training.PROJECTED,
        training.measure_projected,
        "tokens",
        bases=("apart",),
        drawn=("apart", "memory"),
        apart=("dtype", "batch"),
    ),
    "seqnorm": Figure(
        "Sequence normalisation alone, natively and by torch, over the number of tokens: width "
        "384, 8 heads",
        products.SEQNORM_WORKS,
        products.seqnorm,
        "tokens",
        bases=("seqnorm", "sima"),
        apart=("dtype", "batch"),
    ),
    "optimized": Figure(
        "DeiT-S with SimA, optimized, beside OpenVINO",
        optimized.DEIT_WORKS,
        optimized.measure_deit,
        "pixels",
        bases=("openvino_published", "openvino_bare", "openvino_linear", "bare"),
        drawn=("time", "bare"),
        note=optimized.left_out,
    ),
    "optimized_xcit": Figure(
        "XCiT-S12/16 with SimA, optimized, beside OpenVINO",
        optimized.XCIT_WORKS,
        optimized.measure_xcit,
        "pixels",
        bases=("openvino_published", "openvino_xca", "sima"),
        drawn=("time", "sima"),
        note=optimized.left_out,
    ),
    "memory": Figure(
        "Most memory of attention, forward and backward: width 384, 12 heads, 49 bottleneck tokens",
        memory.WORKS,
        memory.measure,
        "tokens",
        bases=("sima",),
        drawn=("memory",),
    ),
    "layer": Figure(
        "One layer over the number of tokens, in chunks and whole: width 384, 8 heads",
        stream.LAYER_WORKS,
        stream.measure_layer,
        "tokens",
        bases=("published", "linear"),
        drawn=("time", "memory"),
    ),
    "stream": Figure(
        "DeiT-S over the image size, from bytes to logits, streamed and whole",
        stream.MODEL_WORKS,
        stream.measure_model,
        "pixels",
        bases=("streamed", "published"),
        drawn=("time", "memory"),
    ),
}
