"""`python -m lab KIND`: what this repository measures for its own documents."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from softless.cli.main import call, main
from softless.cli.options import Parser, parser_of
from softless.errors import need, unknown

PROGRAM = "python -m lab"
# module:function, whose arguments are the options of the kind; and what it is
KINDS: Mapping[str, tuple[str, str]] = {
    "speed": ("lab.speed:speed", "attention, its training step and models, timed on the processor"),
    "operators": (
        "lab.operators:operators",
        "errors of every operator, backend and dtype against float64",
    ),
    "inverse": ("lab.inverses:compare_inverses", "errors of SOFT's inverse and of the published"),
    "models": ("lab.sizes:models", "parameters, multiply-adds, exponentials of every model"),
    "counts": ("lab.counts:counts", "every model counted on two devices: the same numbers"),
    "papers": ("lab.papers:papers", "the papers' tables of sizes beside the measured ones"),
    "autograd": ("lab.autograd:autograd", "derivatives of every operator in all of torch's ways"),
    "swaps": ("lab.swaps:families", "attention exchanged in a model of each family of timm"),
    "biases": ("lab.biases:biases", "what hangs on a bias by position that a swap gives up"),
    "fidelity": ("lab.fidelity:fidelity", "SOFT's defaults beside the published functions"),
    "averages": ("lab.averages:averages", "what a recipe publishes beside its last weights"),
    "survival": ("lab.survival:survival", "what checkpoints and the loop's watching cost"),
    "slides": ("lab.slides:slides", "reading slides through tifffile beside openslide"),
    "exports": ("lab.exports:exports", "what eight bits cost trained runs, by every tool"),
    "recoveries": ("lab.recover:recoveries", "what recovery brings back of trained softmax models"),
    "routes": ("lab.routes:routes", "ways of recovering side by side, on held-out images"),
    "probes": ("lab.probes:probes", "a pretrained backbone exchanged, recovered and probed"),
    "backbone": ("lab.backbone:backbone", "DINOv2 ViT-S/14 out of a wheel, proved and written"),
    "bags": ("lab.bags:bags", "models of bags on histology and on digits, by patients"),
    "eyes": ("lab.eyes:eyes", "photographs of eyes as bags of tiles, told apart in five folds"),
    "settings": ("lab.settings:settings", "fields set to what they cannot be: what is refused"),
}
EXTRAS = {"speed": ("matplotlib",)}


def run(words: Sequence[str]) -> int:
    """Measure a kind and print it; without one, the list of kinds."""
    name, *rest = words or ["--help"]
    if name in {"-h", "--help"}:
        print(overview())
        return 0
    if name not in KINDS:
        raise unknown("kind of measurement", name, KINDS)
    measure = function_of(name)
    parser: Parser = parser_of(name, measure, PROGRAM)
    if {"-h", "--help"} & {*rest}:
        print(parser.format_help(), end="")
        return 0
    need(*EXTRAS.get(name, ()))
    return call(measure, parser, rest)


def function_of(kind: str) -> Callable[..., Any]:
    """The function that measures."""
    module, _, name = KINDS[kind][0].partition(":")
    measure: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return measure


def overview() -> str:
    """The kinds, each with what it measures."""
    lines = [f"  {kind:<10} {what}" for kind, (_, what) in KINDS.items()]
    return "\n".join([
        f"usage: {PROGRAM} KIND [options]        {PROGRAM} KIND --help tells a kind's options",
        "",
        *lines,
    ])


if __name__ == "__main__":
    sys.exit(main(run=run))
