"""Writes the generated blocks of README.md and docs/*.md.

    python tools/tables.py            rewrite the blocks that are stale
    python tools/tables.py --check    change nothing; exit 1 and name them

A block stands between `<!-- generated: NAME (tools/tables.py) -->` and `<!-- end generated -->`.
NAME is a function of BLOCKS, or `csv FILE [COLUMN ...] [COLUMN=VALUE ...]` for a table of
benchmarks/FILE.csv: these columns of the rows that fit; or `paper NAME` for a paper's table of
benchmarks/papers.csv.
"""

import csv
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN = re.compile(r"^<!-- generated: (?P<name>.+?) \(tools/tables\.py\) -->$", re.MULTILINE)
END = "<!-- end generated -->"


class BlockError(Exception):
    """A block that cannot be written: the file, the block, why."""


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; columns whose cells are all numbers are aligned to the right."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    numbers = [
        bool(cells)
        and all(
            re.fullmatch(r"[-+]?[\d.,]+(e[-+]\d+)?( ?[%kMGB])?|refused|not here|", row[i])
            for row in cells
        )
        for i in range(len(head))
    ]
    rule = ["---:" if right else "---" for right in numbers]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), rule, *cells])


def linked(paper: str) -> str:
    """arXiv identifiers as links."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)


COST = {"N": "N", "N^2": "N²"}


def block_of(op: Any) -> Any:
    """One DeiT-S block at 224 x 224: 6 heads, 197 tokens of 64 channels, the class token before 14
    x 14 patches, the operator's defaults.
    """
    from softless.attention.record import Dims

    return Dims(B=1, H=6, N=197, M=197, D=64, E=64, grid=(1, 14, 14), options=op.filled({}))


BLOCK = (
    "Counted for the attention of one DeiT-S block at 224 × 224: 6 heads, 197 tokens (a class "
    "token and 14 × 14 patches), 64 channels each, the operator's defaults"
)


def operators() -> str:
    """What a reader of the README wants to know of each operator."""
    from softless.attention.registry import OPERATORS

    rows = [
        (f"`{name}`", op.summary, COST[op.growth], f"{op.exps(block_of(op)):,}", linked(op.paper))
        for name, op in sorted(OPERATORS.items(), key=lambda item: (item[0] == "softmax", item[0]))
    ]
    head = ["operator", "what it is", "cost in tokens", "transcendentals per block", "paper"]
    return (
        f"{table(head, rows)}\n\n{BLOCK}; transcendentals are exponentials, but for "
        "cosFormer's cosines, SOFT's GELU and Performer's logarithms."
    )


RESOLUTION = {
    "any": "any number of tokens, in one exported graph too",
    "grid": "any grid, passed at each call; an exported graph holds one",
    "fixed": "at most the number of tokens it was built for",
}


def claims() -> str:
    """What each operator claims; `tests/ops/test_contract.py` measures every cell."""
    from softless.attention.registry import OPERATORS

    rows = [
        (
            f"[`{name}`](#{name})",
            COST[op.growth],
            f"{op.flops(block_of(op)) / 2e6:.1f}",
            f"{op.exps(block_of(op)):,}",
            op.sweeps or "none",
            op.normalises,
            yes(op.equivariant),
            yes(op.cross),
            op.resolution,
            " ".join(op.masks),
        )
        for name, op in OPERATORS.items()
    ]
    head = [
        "operator",
        "cost in tokens",
        "multiply-adds [M]",
        "transcendentals",
        "passes",
        "normalises",
        "equivariant",
        "N ≠ M",
        "resolution",
        "masks",
    ]
    return f"{table(head, rows)}\n\n{BLOCK}, without the projections."


def streams(op: Any) -> str:
    """How an operator is a sum over tokens, or why not."""
    if not op.streaming:
        return f"None: {op.no_stream}."
    number = f"{op.sweeps} pass{'es' * (op.sweeps > 1)}"
    return f"{number}. Summary: {op.streaming.holds}. Merging: {op.streaming.merges}."


def tensors(op: Any) -> str:
    """The operator's own tensors at 6 heads of 64 channels and 197 tokens."""
    from softless.attention.options import Sizes

    claims = op.own_tensors({})
    sizes = Sizes(6, 64, op.filled({}), 197)
    shapes = {name: " × ".join(map(str, claim.shape(sizes))) for name, claim in claims.items()}
    said = [
        f"`{name}` {shapes[name]}{'' if claim.trained else ' (drawn, not trained)'}"
        for name, claim in claims.items()
    ]
    return f"{', '.join(said)} (at 6 heads of 64 channels, 197 tokens)" if said else "none"


NEEDS = {
    "grid": "the grid of the tokens",
    "tied_qk": "q and k tied (k=None)",
    "tokens": "a fixed number of tokens",
}


def needs(op: Any) -> str:
    """What the caller must provide beside q, k and v."""
    found = []
    for name, when in op.needs.items():
        chosen = when(op.filled({}))
        found.append(NEEDS[name] + ("" if chosen else " (with some options)"))
    return ", ".join(found) or "nothing but q, k and v"


def bars(op: Any) -> str:
    """Claimed relative errors against float64."""
    import torch

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return "; ".join(
        f"{backend.name}: "
        + ", ".join(f"{name} {backend.tolerance[kind]:.0e}" for name, kind in kinds.items())
        for backend in op.own
    )


def sections() -> str:
    """One section per operator, all of it from its record."""
    from softless.attention.registry import OPERATORS

    return "\n\n".join(section(name, op) for name, op in OPERATORS.items())


def section(name: str, op: Any) -> str:
    """Formula, claims, options of one operator."""
    changes = (
        "a permutation of the tokens permutes the output"
        if op.equivariant
        else "depends on the order of the tokens"
    )
    told = {
        "formula": op.formula,
        "module": f"`softless.{op.title}`",
        "paper": linked(op.paper),
        "cost": f"grows with {COST[op.growth]}; {op.flops(block_of(op)) / 2e6:.1f} M "
        f"multiply-adds and {op.exps(block_of(op)):,} transcendentals in the block above",
        "sum over tokens": streams(op),
        "order": changes,
        "resolution": RESOLUTION[op.resolution],
        "needs": needs(op),
        "tensors of its own": tensors(op),
        "claimed errors": bars(op),
    }
    lines = [
        f"## {name}",
        "",
        f"{op.summary[:1].upper()}{op.summary[1:]}.",
        "",
        table(["", ""], told.items()),
    ]
    if op.options:
        rows = [
            (f"`{key}`", f"`{option.default!r}`", option.says, option.values)
            for key, option in op.options.items()
        ]
        lines += ["", table(["option", "default", "what it does", "values"], rows)]
    if op.differs:
        lines += ["", f"**Where it differs from the published code.** {op.differs}"]
    return "\n".join(lines)


def yes(claim: bool) -> str:
    return "yes" if claim else "no"


def models(root: Path = ROOT) -> str:
    """The registered models, each after its host where timm has it (benchmarks/models.csv)."""
    rows = read_csv(root / "benchmarks" / "models.csv")
    shown = [
        (
            f"`{row['model']}`{' (timm)' * (row['of'] == 'timm')}"
            + (f" or `{row['alias']}`" if row["alias"] else ""),
            f"{int(row['parameters']):,}",
            f"{int(row['macs']) / 1e9:.3f}",
            f"{int(row['exps']):,}",
            f"{int(row['activation_exps']):,}",
        )
        for row in rows
    ]
    head = [
        "model",
        "parameters",
        "multiply-adds [G]",
        "exponentials: attention",
        "activations and positions",
    ]
    return (
        table(head, shown)
        + "\n\nCounted, not timed, for one image of 224 × 224; SOFT's GELU of the bottleneck "
        "tokens counts as attention. "
        'With `act="relu"` the last column is 0 for DeiT and CvT and the position table alone for '
        "XCiT." + origin(rows)
    )


def paper(name: str, root: Path = ROOT) -> str:
    """A table of a paper, printed sizes beside measured ones (benchmarks/papers.csv)."""
    rows = [row for row in read_csv(root / "benchmarks" / "papers.csv") if row["paper"] == name]
    if not rows:
        raise BlockError(f"papers.csv has no table {name}")
    columns = [
        ("row", lambda row: row["name"]),
        ("params", lambda row: row["printed_params"]),
        ("measured", lambda row: f"{int(row['parameters']):,}" if row["parameters"] else ""),
        ("FLOPs", lambda row: row["printed_flops"]),
        ("measured [G]", lambda row: f"{int(row['macs']) / 1e9:.3f}" if row["macs"] else ""),
        ("exps", lambda row: row["printed_exps"].replace("^2", "²")),
        ("measured", lambda row: f"{int(row['exps']):,}" if row["exps"] else ""),
        (
            "activations and positions",
            lambda row: f"{int(row['activation_exps']):,}" if row["activation_exps"] else "",
        ),
        (
            "model",
            lambda row: (
                f"`{row['model']}`" + f" {row['options']}" * bool(row["options"])
                if row["model"]
                else "not here"
            ),
        ),
    ]
    filled = [(name, write) for name, write in columns if any(write(row) for row in rows)]
    notes = "".join(f"\n- {row['name']}: {row['note']}." for row in rows if row["note"])
    shown = table(
        [name for name, _ in filled], [[write(row) for _, write in filled] for row in rows]
    )
    return shown + f"\n{notes}" * bool(notes) + origin(rows)


PROVENANCE = ("commit", "command", "machine", "threads", "versions", "date")


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file of measurements."""
    if not path.is_file():
        raise BlockError(f"{path.name} is not in {path.parent.name}/")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise BlockError(f"{path.name} has no rows")
    return rows


def origin(rows: Sequence[dict[str, str]]) -> str:
    """Where the rows were measured, as a paragraph after their table."""
    told = [
        f"{name} {', '.join(sorted({row[name] for row in rows}))}"
        for name in PROVENANCE
        if name in rows[0]
    ]
    return f"\n\nMeasured: {'; '.join(told)}." if told else ""


def rounded(cell: str) -> str:
    """Four significant digits of a number with a fraction; anything else as it is."""
    try:
        return f"{float(cell):.4g}" if re.search(r"\d[.e]", cell) else cell
    except ValueError:
        return cell


# columns whose name in CSV files is not the field's word (docs/glossary.md)
HEADS = {
    "rival": "competitor",
    "bar": "target",
    "to_bare": "to_baseline",
    "bare_error": "uncalibrated_error",
}


def csv_table(path: Path, words: Sequence[str]) -> str:
    """The columns asked for (or all but the provenance, which follows as one line), of the rows
    that every COLUMN=VALUE fits.
    """
    rows = read_csv(path)
    wanted = dict(word.split("=", 1) for word in words if "=" in word)
    columns = [word for word in words if "=" not in word] or [
        name for name in rows[0] if name not in PROVENANCE and name not in wanted
    ]
    if missing := [name for name in [*columns, *wanted] if name not in rows[0]]:
        raise BlockError(f"{path.name} has no column {missing[0]}; it has {', '.join(rows[0])}")
    rows = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    if not rows:
        raise BlockError(
            f"{path.name} has no row with {' and '.join(word for word in words if '=' in word)}"
        )
    return table(
        [HEADS.get(name, name).replace("_", " ") for name in columns],
        [[rounded(row[name]) for name in columns] for row in rows],
    ) + origin(rows)


def errors(root: Path = ROOT) -> str:
    """The largest relative errors of each form of each operator over the families of data
    (benchmarks/operators.csv).
    """
    rows = read_csv(root / "benchmarks" / "operators.csv")
    return "\n\n".join([
        "Of the value:\n\n" + _errors(rows, "error"),
        "Of the gradient of q, k and v:\n\n" + _errors(rows, "gradient_error") + origin(rows),
    ])


def _errors(rows: list[dict[str, str]], column: str) -> str:
    lengths = sorted({int(row["tokens"]) for row in rows})
    by_form: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        if row["form"] != "reference":  # kept in the file
            key = tuple(row[name] for name in ("operator", "form", "options", "dtype", "out_dtype"))
            by_form.setdefault(key, []).append(row)

    def worst(here: list[dict[str, str]]) -> str:
        measured = [row for row in here if row[column] and row["status"] == "ok"]
        if not measured:
            return here[0]["status"] if here else ""
        most = max(measured, key=lambda row: float(row[column]))
        named = most["claim"] and float(most[column]) > NAMED * float(most["claim"])
        return f"{float(most[column]):.1e}{' ' + most['family'] if named else ''}"

    shown = [
        (
            f"`{op}`",
            f"{form} {options}".strip(),
            dtype if dtype == out else f"{dtype} → {out}",
            *(worst([row for row in found if int(row["tokens"]) == length]) for length in lengths),
        )
        for (op, form, options, dtype, out), found in by_form.items()
    ]
    return table(["operator", "form", "dtype", *(f"N = {length:,}" for length in lengths)], shown)


NAMED = 10  # an error so many times the claim names the data it comes from


def settings() -> str:
    """Every field of a recipe: its default, what it takes and what it is
    (`softless.experiment.recipe`).
    """
    from softless.experiment.fields import shown, walk
    from softless.experiment.recipe import Recipe

    groups: dict[str, list[tuple[str, ...]]] = {}
    for row in walk(Recipe):
        group, _, _ = row.name.rpartition(".")
        cells = (
            f"`{row.name}`",
            f"`{shown(row.value)}`",
            row.setting.takes(row.hint),
            row.setting.says,
        )
        groups.setdefault(group, []).append(cells)
    head = ["field", "default", "takes", "what it is"]
    return "\n\n".join(
        f"### {group or 'the run'}\n\n{table(head, rows)}"
        for group, rows in sorted(groups.items(), key=lambda item: bool(item[0]))
    )


def refused(root: Path = ROOT) -> str:
    """What was tried on the fields of all recipes, and how much of it was refused
    (benchmarks/settings.csv).
    """
    rows = read_csv(root / "benchmarks" / "settings.csv")
    faults = dict.fromkeys(row["fault"] for row in rows)
    sums = [
        (
            fault,
            *(
                f"{sum(int(row[column]) for row in rows if row['fault'] == fault):,}"
                for column in ("tried", "refused")
            ),
        )
        for fault in faults
    ]
    return table(["fault", "tried", "refused"], sums) + origin(rows)


def formats() -> str:
    """What `softless export` writes (`softless.exporting.formats`)."""
    from softless.exporting.formats.standing import abilities
    from softless.exporting.formats.table import FORMATS

    told = {name: abilities(record) for name, record in FORMATS.items()}
    heads = list(next(iter(told.values())))
    rows = [
        (f"`{name}`", FORMATS[name].summary, *(cells[head] for head in heads))
        for name, cells in told.items()
    ]
    return table(["format", "what reads it", *heads], rows)


def layouts() -> str:
    """The files that `softless.Bag.open` reads (`softless.bags.layouts`)."""
    from softless.bags.layouts.table import LAYOUTS

    rows = [(f"`{row.name}`", row.tool, row.keys, row.unit) for row in LAYOUTS.values()]
    return table(["layout", "tool", "what it is known by", "coordinates"], rows)


TOOLS = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "executorch": "ExecuTorch"}


def int8(root: Path = ROOT) -> str:
    """What eight bits cost trained runs, by tool (benchmarks/int8.csv)."""
    rows = read_csv(root / "benchmarks" / "int8.csv")
    shown = []
    for row in rows:
        drop, low, high = (100 * float(row[name]) for name in ("drop", "drop_low", "drop_high"))
        alike, least = (100 * float(row[name]) for name in ("agreement", "least_agreement"))
        size, float_size = (int(row[name]) / 1024 for name in ("bytes", "float_bytes"))
        shown.append((
            row["data"],
            f"{row['images']} x {row['seeds']}",
            f"`{row['op']}`",
            TOOLS[row["format"]],
            f"{row['int8']}: {row['recipe']}",
            f"{100 * float(row['top1_float']):.2f}",
            f"{drop:+.2f} [{low:+.2f}, {high:+.2f}]",
            f"{alike:.1f} ({least:.1f})",
            f"{float(row['logits_error']):.3f}",
            f"{size:,.0f} of {float_size:,.0f}",
            row["bar"] if row["data"] in BARRED else "",
        ))
    head = ["images", "number x seeds", "attention", "tool", "recipe", "accuracy in float32 [%]"]
    head += ["eight bits less float32 [points]", "answers alike [%] (least)", "error of logits"]
    head += ["KiB", "target"]
    return table(head, shown) + origin(rows)


STEPS = {
    "bare": "exchanged, no more",
    "calibrate": "one number a head",
    "refit": "refit",
    "distil": "refit and distillation",
    "scratch": "from new weights, as many steps",
}


def recovered(root: Path = ROOT) -> str:
    """What each step of a recovery brings back, by operator (benchmarks/recover.csv)."""
    rows = read_csv(root / "benchmarks" / "recover.csv")
    shown = []
    for row in rows:
        accuracy, low, high = (100 * float(row[name]) for name in ("top1", "top1_low", "top1_high"))
        shown.append((
            row["data"] if row["teacher"] == row["data"] else f"{row['data']}, {row['teacher']}",
            f"{row['test_images']} x {row['seeds']}",
            f"{100 * float(row['teacher_top1']):.1f}",
            f"`{row['op']}`",
            STEPS[row["step"]],
            row["images"] if int(row["images"]) else "",
            f"{accuracy:.1f} [{low:.1f}, {high:.1f}]",
            f"{float(row['share']):.3f}" + (f" ({row['bar']})" if row["bar"] else ""),
            f"{100 * float(row['agreement']):.1f}" if row["agreement"] else "",
            f"{float(row['cpu_seconds']):.1f}" if row["cpu_seconds"] else "",
        ))
    head = ["images", "number x seeds", "teacher [%]", "attention", "step", "learned from"]
    head += ["accuracy [%]", "of the teacher's (target)", "same answer [%]", "CPU s"]
    return table(head, shown) + origin(rows)


BARRED = ("digits", "pneumoniamnist")  # the others have too few images for a point


BLOCKS: dict[str, Callable[[], str]] = {
    "operators": operators,
    "claims": claims,
    "sections": sections,
    "models": models,
    "errors": errors,
    "int8": int8,
    "recovered": recovered,
    "settings": settings,
    "formats": formats,
    "layouts": layouts,
    "refused": refused,
}


def render(name: str, root: Path) -> str:
    """The text of a block."""
    kind, *words = name.split()
    if kind == "csv" and words:
        return csv_table(root / "benchmarks" / f"{words[0]}.csv", words[1:])
    if kind == "paper" and len(words) == 1:
        return paper(words[0], root)
    if name not in BLOCKS:
        raise BlockError(
            f"no such block; known: {', '.join(BLOCKS)}, paper NAME, csv FILE [COLUMN ...] "
            "[COLUMN=VALUE ...]"
        )
    return BLOCKS[name]()


def rewritten(text: str, root: Path) -> tuple[str, list[str]]:
    """The text with its blocks brought up to date, and the names of those that were stale."""
    parts, stale, position = [], [], 0
    while begin := BEGIN.search(text, position):
        end = text.find(f"\n{END}", begin.end())
        following = BEGIN.search(text, begin.end())
        if end < 0 or (following and following.start() < end):
            raise BlockError(f"block '{begin['name']}' has no '{END}'")
        try:
            new = f"\n{render(begin['name'], root)}"
        except BlockError as error:
            raise BlockError(f"block '{begin['name']}': {error}") from None
        if text[begin.end() : end] != new:
            stale.append(begin["name"])
        parts += [text[position : begin.end()], new]
        position = end
    return "".join([*parts, text[position:]]), stale


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Exit code: 0 when all is (or was brought) up to date, 1 for a stale block under --check, 2
    for one that cannot be written.
    """
    check, code = arguments == ["--check"], 0
    if arguments and not check:
        print(__doc__, file=sys.stderr)
        return 2
    for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        if not path.is_file():
            continue
        text, name = path.read_text(encoding="utf-8"), path.relative_to(root)
        try:
            new, stale = rewritten(text, root)
        except BlockError as error:
            print(f"{name}: {error}", file=sys.stderr)
            code = 2
            continue
        for block in stale:
            print(f"{name}: block '{block}' " + ("is stale: make tables" if check else "rewritten"))
        if stale and check:
            code = code or 1
        elif stale:
            path.write_text(new, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
