"""Counts the stairs of the house: what imports what, how deep, and where against the order.

    python tools/stairs.py            the table
    python tools/stairs.py --list     each of what is counted, by file
    python tools/stairs.py --check    exit 1 where a count is above its limit (`make lint`)

Modules are those of `softless/`. An import counts wherever it stands: at the top of a file, inside
a function, or for type checkers alone. `of_tasks("settings")` counts as an import of the module
`settings` of each task.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {
    "imports within functions": 0,
    "imports for types alone": 0,
    "circles of files": 0,
    "longest chain of imports": 26,
    # the table of tasks, what `softless.training` offers, and old names of modules
    "files that name every task": 3,
}
DOORS = ("softless", "softless.cli.main")  # import lazily, as a front door must
Graph = Mapping[str, frozenset[str]]


class Import(NamedTuple):
    """A module that imports another of the package."""

    source: str
    target: str
    line: int
    inner: bool  # within a function
    typed: bool  # under TYPE_CHECKING


def modules(root: Path) -> dict[str, Path]:
    """Each module of the package by its name."""
    found = {}
    for path in sorted((root / "softless").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> list[Import]:
    """Every import of one module of the package by another."""
    known = modules(root)
    found = []
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node, inner, typed in _walk(tree, inner=False, typed=False):
            targets = _targets(node, name, path, known) - {name}
            found += [Import(name, target, node.lineno, inner, typed) for target in sorted(targets)]
    return found


def _walk(
    node: ast.AST, *, inner: bool, typed: bool
) -> Iterator[tuple[ast.stmt | ast.Call, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)) or _gathers(child):
            assert isinstance(child, (ast.stmt, ast.Call))
            yield child, inner, typed
        within = inner or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        checked = typed or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
        yield from _walk(child, inner=within, typed=checked)


def _gathers(node: ast.AST) -> bool:
    """Whether it is a call of `softless.tasks.folders.of_tasks`."""
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith("of_tasks")


def _targets(
    node: ast.stmt | ast.Call, name: str, path: Path, known: Mapping[str, Path]
) -> set[str]:
    """The modules of the package that a statement imports, or a call of `of_tasks`."""
    if isinstance(node, ast.Call):
        (file,) = (ast.literal_eval(argument) for argument in node.args)
        return {each for each in known if fnmatch(each, f"softless.tasks.*.{file}")}
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names if alias.name in known}
    assert isinstance(node, ast.ImportFrom)
    base = node.module or ""
    if node.level:
        parts = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        kept = parts[: len(parts) - node.level + 1]
        base = ".".join([*kept, base] if base else kept)
    found = {f"{base}.{alias.name}" for alias in node.names} & known.keys()
    return found or ({base} & known.keys())


def graph(found: list[Import]) -> dict[str, frozenset[str]]:
    """Module -> what it imports."""
    names = {end for one in found for end in (one.source, one.target)}
    return {
        name: frozenset(one.target for one in found if one.source == name) for name in sorted(names)
    }


def circles(edges: Graph) -> list[list[str]]:
    """Groups of modules that import each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(edges[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            groups.append(sorted(group))

    for name in edges:
        if name not in index:
            visit(name)
    return groups


def longest_chain(edges: Graph) -> list[str]:
    """The longest chain of imports; a circle is one step."""
    groups = circles(edges)  # each behind all that it imports
    of = {name: number for number, group in enumerate(groups) for name in group}
    best: list[list[str]] = []
    for number, group in enumerate(groups):
        below = {of[target] for name in group for target in edges[name]} - {number}
        longest = max((best[one] for one in below), key=len, default=[])
        best.append([group[0], *longest])
    return max(best, key=len, default=[])


def naming_every_task(root: Path) -> list[str]:
    """Modules outside the folders of tasks that name all of them but the first, which needs no
    group: in an import, a field or a text. A new task would have to be written there too.
    """
    known = modules(root)
    own = tuple(name.removesuffix("task") for name in known if fnmatch(name, "*.tasks.*.task"))
    tasks = {name.split(".")[-2] for name in own} - {"classification"}
    return [
        name
        for name, path in known.items()
        if tasks and not name.startswith(own) and tasks <= _words(path)
    ]


def _words(path: Path) -> set[str]:
    """The parts of dotted names in imports and texts, and the names of fields."""
    words: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            words |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words |= set(node.value.split("."))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            words.add(node.target.id)
    return words


def table(root: Path) -> dict[str, list[str]]:
    """What is counted -> each of it."""
    found = imports(root)
    edges = graph(found)
    return {
        "imports within functions": [
            f"{one.source}:{one.line} imports {one.target}"
            for one in found
            if one.inner and one.source not in DOORS
        ],
        "imports for types alone": [
            f"{one.source}:{one.line} imports {one.target}" for one in found if one.typed
        ],
        "circles of files": [", ".join(group) for group in circles(edges) if len(group) > 1],
        "longest chain of imports": longest_chain(edges),
        "files that name every task": naming_every_task(root),
    }


def main(arguments: list[str], root: Path = ROOT) -> int:
    counted = table(root)
    above = {what: each for what, each in counted.items() if len(each) > LIMITS[what]}
    if "--check" in arguments:
        for what, each in above.items():
            print(f"{what}: {len(each)}, and the limit is {LIMITS[what]}:", *each, sep="\n  ")
        return 1 if above else 0
    for what, each in counted.items():
        print(f"{what:<32} {len(each)}")
    if "--list" in arguments:
        for what, each in counted.items():
            print(f"\n{what}:")
            print(*(f"  {line}" for line in each), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
