"""Counts what makes the house hard to read: long lines, long sentences, vague names, no shapes.

    python tools/prose.py            the table
    python tools/prose.py --list     the long sentences, the vague names and the functions whose
                                     tensors have no shape too, by file

Sentences are those of README.md, docs/*.md, CONTRIBUTING.md and the docstrings of public things.
Code, tables, generated blocks and lists of arguments are no sentences.
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100  # characters of a line
LONG = 30  # words of a sentence
VAGUE = frozenset([
    "found",
    "one",
    "told",
    "said",
    "given",
    "made",
    "theirs",
    "ours",
    "place",
    "whole",
    "wide",
    "others",
    "other",
    "asked",
    "held",
    "kept",
    "taken",
    "about",
    "here",
    "there",
    "what",
    "where",
    "shown",
    "seen",
    "known",
    "left",
    "right",
    "used",
    "wanted",
    "least",
    "most",
    "few",
    "many",
    "more",
    "pair",
    "both",
])
GENERATED = re.compile(r"<!-- generated:.*?<!-- end generated -->", re.DOTALL)
FENCED = re.compile(r"```.*?```", re.DOTALL)
SECTIONS = re.compile(r"\n(Args|Returns|Raises|Yields|Attributes|Examples?):\n.*", re.DOTALL)
TENSOR = re.compile(r"\b(Tensor|ndarray|NDArray)\b")
NAMED = frozenset(["Mapping", "MutableMapping", "dict", "OrderedDict"])  # each name has its shape
WALKED = frozenset(["Iterable", "Iterator", "Sequence", "list"])
AUTOGRAD = frozenset(["forward", "backward", "setup_context", "jvp", "vjp", "vmap"])
DIMENSIONS = (  # a dimension that is no single letter
    "batch|batches|cells|channels|classes|class|columns|dim|dim_out|features|height|images|in|inner"
    "|numbers?|num_classes|of|old|or|out|patch|prefix|replicates|rows|seeds|start|stop|stride|sum"
    "|tokens?|width|TD|HD"
)
_DIMENSION = rf"(?:\d+|…|\.\.\.|[A-Za-z](?:_\w+)?'?|{DIMENSIONS})(?![\w'])"
_LENGTH = rf"{_DIMENSION}(?:[ */+^-]+{_DIMENSION})*"
SHAPE = re.compile(
    rf"(?<![\w)])\((?:{_LENGTH}(?:, ?{_LENGTH})+|{_LENGTH},)?\)"  # (B, H, N, D), (n,), ()
    r"|\b0-d\b|\b([Aa]ny|[Aa]ny one|one|same|its|own) shapes?\b|\b[Tt]he shapes? (of|that)\b"
)


class Sentence(NamedTuple):
    """A sentence and where it stands."""

    path: Path
    text: str

    @property
    def words(self) -> int:
        return len(self.text.split())


def sources(root: Path) -> list[Path]:
    """The files of the package."""
    return sorted([*root.glob("softless/**/*.py"), *root.glob("softless_command/*.py")])


def documents(root: Path) -> list[Path]:
    """What people read."""
    return [root / "README.md", root / "CONTRIBUTING.md", *sorted(root.glob("docs/*.md"))]


def split(text: str) -> Iterator[str]:
    """The sentences of plain paragraphs.

    >>> list(split("One thing (see 3.2). Another one!\\n\\n- a point"))
    ['One thing (see 3.2).', 'Another one!', 'a point']
    """
    for paragraph in re.split(r"\n\s*\n|\n\s*(?=[-*] |\d+\. |#|\S+ {2,}\S)", text):
        plain = " ".join(re.sub(r"^\s*([-*] |\d+\. |#+ |> )", "", paragraph).split())
        yield from (part for part in re.split(r"(?<=[.!?]) (?=[A-Z`(\"])", plain) if part)


def of_document(path: Path) -> Iterator[Sentence]:
    """The sentences of a Markdown file."""
    text = FENCED.sub("", GENERATED.sub("", path.read_text(encoding="utf-8")))
    lines = [line for line in text.splitlines() if not line.startswith(("|", "    ", "<", "!["))]
    yield from (Sentence(path, sentence) for sentence in split("\n".join(lines)))


def of_docstrings(path: Path) -> Iterator[Sentence]:
    """The sentences of the docstrings of public things in a file, but for lists of arguments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if not isinstance(node, kinds) or getattr(node, "name", "").startswith("_"):
            continue
        text = SECTIONS.sub("", ast.get_docstring(node) or "")
        plain = "\n".join(line for line in text.splitlines() if not line.startswith(("    ", "|")))
        yield from (Sentence(path, sentence) for sentence in split(plain))


def bound(path: Path) -> Iterator[str]:
    """The names that a file binds: variables, arguments, attributes of self."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def shaped(text: str) -> bool:
    """Whether a docstring states a shape.

    >>> [shaped(text) for text in ("x (…, 3 H D)", "Of any shape.", "f(x, y) (see, it), call()")]
    [True, True, False]
    """
    plain = " ".join(
        re.sub(r"[\[\]]", " ", text).split()
    )  # [class token] is one that may be absent
    return SHAPE.search(plain.replace("( ", "(")) is not None


def bare_tensors(annotation: ast.expr) -> bool:
    """Whether an annotation has tensors beyond those in mappings and in walks over pairs."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return TENSOR.search(annotation.value) is not None
    if isinstance(annotation, ast.Subscript):
        name = ast.unparse(annotation.value).rpartition(".")[2]
        if name in NAMED or (name in WALKED and _is_pair(annotation.slice)):
            return False
    if isinstance(annotation, (ast.Name, ast.Attribute)):
        return TENSOR.search(ast.unparse(annotation)) is not None
    children = [node for node in ast.iter_child_nodes(annotation) if isinstance(node, ast.expr)]
    return any(bare_tensors(node) for node in children)


def _is_pair(annotation: ast.expr) -> bool:
    """Whether an annotation is tuple[str, …], a name and what it stands for."""
    return ast.unparse(annotation).startswith("tuple[str, ")


def functions_of_tensors(path: Path) -> Iterator[tuple[str, bool]]:
    """The public functions of a file that take or return tensors, and whether a shape is stated."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    overriding: set[str] = {"Function"}  # classes that derive from torch.autograd.Function

    def visit(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, bool]]:
        bases = [ast.unparse(base) for base in getattr(node, "bases", [])]
        autograd = any(base.rpartition(".")[2] in overriding for base in bases)
        if isinstance(node, ast.ClassDef) and autograd:
            overriding.add(node.name)
        for inner in node.body:
            name = getattr(inner, "name", "_")
            if name.startswith("_") and name != "__call__":
                continue
            if isinstance(inner, ast.ClassDef):
                yield from visit(inner, f"{prefix}{name}.")
            elif isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if autograd and name in AUTOGRAD:
                    continue
                if any(bare_tensors(annotation) for annotation in _annotations(inner)):
                    text = ast.get_docstring(inner) or ""
                    if name in ("forward", "__call__"):
                        text = f"{text} {ast.get_docstring(node) or ''}"
                    yield f"{prefix}{name}", shaped(text)

    return visit(tree, "")


def _annotations(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr]:
    """The annotations of the arguments and of what is returned."""
    arguments = [node for node in ast.walk(function.args) if isinstance(node, ast.arg)]
    annotations = [argument.annotation for argument in arguments] + [function.returns]
    return [annotation for annotation in annotations if annotation is not None]


def longest_signature(root: Path) -> int:
    """Characters of the longest line of a signature."""
    longest = 0
    for path in sources(root):
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                head = lines[node.lineno - 1 : node.body[0].lineno - 1] or [lines[node.lineno - 1]]
                plain = [re.sub(r"\s+# (noqa|type).*", "", line) for line in head]
                longest = max(longest, *(len(line) for line in plain if '"""' not in line), 0)
    return longest


def table(root: Path) -> dict[str, str]:
    """Each count, as it is printed."""
    lines = [line for path in sources(root) for line in path.read_text("utf-8").splitlines()]
    long = sum(len(line) > WIDTH for line in lines)
    skips = sum("# fmt: skip" in line for line in lines)
    sentences = all_sentences(root)
    over = sum(sentence.words > LONG for sentence in sentences)
    names = [name for path in sources(root) for name in bound(path)]
    vague = sum(name in VAGUE for name in names)
    stated = [shape for path in sources(root) for _, shape in functions_of_tensors(path)]
    without = stated.count(False)
    return {
        f"lines over {WIDTH} characters": f"{long:,} of {len(lines):,} ({long / len(lines):.2%})",
        "fmt: skip": f"{skips}",
        "longest line of a signature": f"{longest_signature(root)}",
        f"sentences over {LONG} words": (
            f"{over:,} of {len(sentences):,} ({over / len(sentences):.1%})"
        ),
        "vague names": f"{vague:,} of {len(names):,} ({vague / len(names):.1%})",
        "tensors without a shape": (
            f"{without:,} of {len(stated):,} ({without / max(len(stated), 1):.1%})"
        ),
    }


def all_sentences(root: Path) -> list[Sentence]:
    """The sentences of documents and docstrings."""
    found = [sentence for path in documents(root) for sentence in of_document(path)]
    return found + [sentence for path in sources(root) for sentence in of_docstrings(path)]


def main(arguments: list[str], root: Path = ROOT) -> int:
    for what, count in table(root).items():
        print(f"{what:<32} {count}")
    if "--list" in arguments:
        for sentence in sorted(all_sentences(root), key=lambda one: -one.words):
            if sentence.words > LONG:
                path = sentence.path.relative_to(root)
                print(f"{path}: {sentence.words} words: {sentence.text[:WIDTH]}")
        counts = {path: Counter(n for n in bound(path) if n in VAGUE) for path in sources(root)}
        for path, names in sorted(counts.items(), key=lambda pair: -pair[1].total()):
            if names:
                print(f"{path.relative_to(root)}: {dict(names.most_common())}")
        for path in sources(root):
            for name, stated in functions_of_tensors(path):
                if not stated:
                    print(f"{path.relative_to(root)}: no shape: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
