"""What no linter sees: findings as `path:line: what (rule)`, exit code 1 if there is one.

    python tools/checks.py [root]

A rule is a generator over one file; the two lists at the end say which files it reads. There is no
way to switch one off in a line: mend the line, or the rule.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple


class Finding(NamedTuple):
    path: Path
    line: int
    what: str
    rule: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what} ({self.rule})"


class Source(NamedTuple):
    path: Path  # relative to the root
    text: str
    tree: ast.Module


def called(node: ast.Call) -> str:
    """The dotted name of what is called; `().x` where it begins with something else than a name."""
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    parts.append(function.id if isinstance(function, ast.Name) else "()")
    return ".".join(reversed(parts))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


COMPARISONS = {"allclose", "isclose", "equal", "array_equal", "is_close", "array_equiv"}


def dropped_comparison(source: Source) -> Iterator[Finding]:
    """`torch.allclose(a, b)` as a statement: the answer is thrown away, so nothing is tested."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            name = called(node.value)
            if name.rsplit(".", 1)[-1] in COMPARISONS:
                yield Finding(
                    source.path,
                    node.lineno,
                    f"the result of {name}(...) is dropped",
                    "dropped comparison",
                )


CHECKERS = {"raises", "warns", "deprecated_call", "fail", "gradcheck", "gradgradcheck", "opcheck"}


def _asserts(function: ast.AST, helpers: set[str]) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            last = called(node).rsplit(".", 1)[-1]
            if last in CHECKERS | helpers or last.startswith(("assert_", "check_")):
                return True
    return False


def _asserting_helpers(tree: ast.Module) -> set[str]:
    """The functions of this file that assert, themselves or through one another."""
    helpers: set[str] = set()
    while True:
        found = {function.name for function in functions(tree) if _asserts(function, helpers)}
        if found == helpers:
            return helpers
        helpers = found


def test_without_assertion(source: Source) -> Iterator[Finding]:
    """A test that cannot fail but by an exception.

    Helpers of other files count when they are called `assert_…` or `check_…`.
    """
    if not source.path.name.startswith("test_"):
        return
    helpers = _asserting_helpers(source.tree)
    for function in functions(source.tree):
        if function.name.startswith("test") and not _asserts(function, helpers):
            yield Finding(
                source.path,
                function.lineno,
                f"{function.name} asserts nothing",
                "test without assertion",
            )


SMALL = 5  # lines of a function whose name says it all (style §9)


def missing_docstring(source: Source) -> Iterator[Finding]:
    """Public classes, and public functions that are longer than a well-named small helper.

    The only public name of a file speaks through the docstring of the file (a recipe, a command).
    """
    if any(part.startswith("_") and part != "__init__.py" for part in source.path.parts):
        return
    defined = [
        node
        for node in source.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    public = [node for node in defined if not node.name.startswith("_")]
    if len(public) == 1 and ast.get_docstring(source.tree):
        return
    for node in public:
        if ast.get_docstring(node):
            continue
        lines = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
        if isinstance(node, ast.ClassDef) or lines > SMALL:
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            yield Finding(
                source.path,
                node.lineno,
                f"public {kind} {node.name} has no docstring",
                "missing docstring",
            )


UNSAFE_IMPORTS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}
UNSAFE_CALLS = {
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "builtins.eval",
    "builtins.exec",
}


def _bound(tree: ast.Module) -> set[str]:
    """Names that the module defines or imports at its top level: there, `eval` may be our verb."""
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    return names | {alias.asname or alias.name for node in imports for alias in node.names}


def _unsafe_import(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (
            f"import {alias.name}"
            for alias in node.names
            if alias.name.split(".")[0] in UNSAFE_IMPORTS
        )
    elif (
        isinstance(node, ast.ImportFrom)
        and (node.module or "").split(".")[0] in UNSAFE_IMPORTS
        and not node.level
    ):
        # the error that torch.load raises may be caught
        names = {alias.name for alias in node.names} - {"UnpicklingError"}
        if names:
            yield f"from {node.module} import {', '.join(sorted(names))}"


def _unsafe_keyword(node: ast.keyword) -> bool:
    constant = node.value.value if isinstance(node.value, ast.Constant) else ...
    required = {"weights_only": True, "shell": False, "allow_pickle": False}
    return node.arg == "trust_remote_code" or (
        node.arg in required and constant is not required[node.arg]
    )


def _unsafe(node: ast.AST, bound: set[str]) -> Iterator[str]:
    yield from _unsafe_import(node)
    if isinstance(node, ast.Call):
        name = called(node)
        if name in UNSAFE_CALLS or (name in {"eval", "exec"} and name not in bound):
            yield f"{name}(...)"
    elif isinstance(node, ast.keyword) and _unsafe_keyword(node):
        yield f"{node.arg}={ast.unparse(node.value)}"
    elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":
        yield "'trust_remote_code'"


def unsafe_source(source: Source) -> Iterator[Finding]:
    """Ways to run code that came with a file. Loading a model runs none (SECURITY.md)."""
    bound = _bound(source.tree)
    for node in ast.walk(source.tree):
        for what in _unsafe(node, bound):
            line = getattr(node, "lineno", 1)
            yield Finding(source.path, line, f"{what} is forbidden in the library", "unsafe source")


READS = {"weight", "bias"}
ASKED = "softless/layers/plain.py"  # the one rule: weights_of, give
MAY_READ = {  # by the beginning of the path
    "softless/evaluation/linear.py": "the start of a layer of its own",
    "softless/models/pyramid.py": "the start of a model that is being built",
    "softless/compare/resolution.py": "models that the comparison has just trained",
}


def _weight_read(node: ast.AST) -> str:
    """What reads a weight: `layer.weight`, `getattr(layer, "weight")` or
    `layer._parameters["weight"]`; nothing for what is `self`'s.
    """
    if isinstance(node, ast.Attribute) and node.attr in READS:
        own = isinstance(node.value, ast.Name) and node.value.id == "self"
        return "" if own else ast.unparse(node)
    if isinstance(node, ast.Call) and called(node) in {
        "getattr",
        "attrgetter",
        "operator.attrgetter",
    }:
        named = [one.value for one in node.args if isinstance(one, ast.Constant)]
        return (
            ast.unparse(node)
            if any(str(name).rsplit(".", 1)[-1] in READS for name in named)
            else ""
        )
    if (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "_parameters"
    ):
        return ast.unparse(node)
    return ""


def weight_read(source: Source) -> Iterator[Finding]:
    """A weight read without asking whether it may be: an adapter, a hook or an offloaded weight
    would be passed by.
    """
    path = source.path.as_posix()
    if path == ASKED or path.startswith(tuple(MAY_READ)):
        return
    for node in ast.walk(source.tree):
        if what := _weight_read(node):
            yield Finding(
                source.path,
                getattr(node, "lineno", 1),
                f"{what} is read without asking weights_of ({ASKED})",
                "weight read",
            )


WIDTH = 100  # characters of a line
PRAGMAS = ("# type: ignore", "# noqa")  # which stand where the fault is, however long the line


def long_line(source: Source) -> Iterator[Finding]:
    """A line that is too long to read, and what keeps the formatter from breaking one.

    Inside of texts of several lines it may be a formula, a table or a command.
    """
    inside: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if tokenize.tok_name[token.type] in {"STRING", "FSTRING_MIDDLE"}:
            inside.update(range(token.start[0], token.end[0] + (token.end[0] > token.start[0])))
        elif token.type == tokenize.COMMENT and re.match(r"# fmt: (skip|off)", token.string):
            yield Finding(source.path, token.start[0], "the formatter is kept away", "long line")
    for number, line in enumerate(source.text.splitlines(), 1):
        if len(line) > WIDTH and number not in inside and not any(word in line for word in PRAGMAS):
            what = f"{len(line)} characters, and a line has at most {WIDTH}"
            yield Finding(source.path, number, what, "long line")


REGISTRY = re.compile(
    r"\b(?:[\w-]+\.)*(?:pypi\.(?:org|python\.org|nvidia\.com)|pythonhosted\.org"
    r"|anaconda\.(?:org|com)"
    r"|download\.pytorch\.org"
    r"|npmjs\.(?:org|com)|crates\.io|rubygems\.org|proxy\.golang\.org"
    r"|repo1?\.maven\.(?:org|apache\.org))\b"
    r"|https?://[^\s\"'<>]+/simple\b"
)
MACHINE_PATH = re.compile(r"(?<![\w.~)}\]/-])/(?:home|root|work|Users)(?=/|[\s\"'`,;:)]|$)")
TEMPORARY_PATH = re.compile(r"(?<![\w.~)}\]/-])/tmp(?=/|[\s\"'`,;:)]|$)")


def machine_text(path: Path, text: str) -> Iterator[Finding]:
    """Package registries are the user's settings, and no path of one machine is there on another.

    Tests may name the folder for temporary files.
    """
    paths = [MACHINE_PATH] if path.parts[0] == "tests" else [MACHINE_PATH, TEMPORARY_PATH]
    for number, line in enumerate(text.splitlines(), 1):
        for match in REGISTRY.finditer(line):
            yield Finding(
                path, number, f"names the package registry {match[0]}", "package registry"
            )
        for match in (found for pattern in paths for found in pattern.finditer(line)):
            yield Finding(path, number, f"names the machine path {match[0]}", "machine path")


def missing_init(files: list[Path]) -> Iterator[Finding]:
    """A package folder without __init__.py is there in the checkout and absent from the wheel."""
    known = set(files)
    folders = {
        parent
        for path in files
        if path.suffix == ".py" and path.parts[0] == "softless"
        for parent in path.parents[:-1]
    }
    for folder in sorted(folders):
        if folder / "__init__.py" not in known:
            yield Finding(folder, 1, "package folder without __init__.py", "missing __init__.py")


EVERYWHERE: list[Callable[[Source], Iterator[Finding]]] = [dropped_comparison, long_line]
IN_FOLDER: dict[str, list[Callable[[Source], Iterator[Finding]]]] = {
    "softless": [missing_docstring, unsafe_source, weight_read],
    "tests": [test_without_assertion],
}


def listed(root: Path) -> list[Path]:
    """The files of the repository: tracked, or new and not ignored; without git, all of them."""
    command = [
        "git",
        "-C",
        str(root),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        paths = [Path(name) for name in answer.split("\0") if name]
    except (subprocess.CalledProcessError, FileNotFoundError):
        paths = [path.relative_to(root) for path in root.rglob("*")]
    return sorted(path for path in set(paths) if (root / path).is_file())


def check(root: Path) -> list[Finding]:
    """All findings in a repository, by path and line."""
    files = listed(root)
    findings = list(missing_init(files))
    for path in files:
        try:
            text = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not a text
        findings += machine_text(path, text)
        if path.suffix == ".py":
            source = Source(path, text, ast.parse(text, str(path)))
            for rule in EVERYWHERE + IN_FOLDER.get(path.parts[0], []):
                findings += rule(source)
    return sorted(findings)


def main(arguments: list[str]) -> int:
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    findings = check(root)
    print(*findings, sep="\n") if findings else print("tools/checks.py: nothing found")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
