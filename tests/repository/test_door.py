"""Whatever changes the disk goes through `models/durable.py`: there an error of the system becomes
one sentence, and no half file is left.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "softless"
METHODS = {
    "write_text",
    "write_bytes",
    "mkdir",
    "makedirs",
    "touch",
    "unlink",
    "rmdir",
    "rmtree",
    "rename",
    "renames",
    "link",
    "symlink",
    "symlink_to",
    "hardlink_to",
    "chmod",
    "truncate",
    "ftruncate",
    "to_csv",
    "to_json",
    "copyfile",
    "copytree",
    "copy2",
    "copyfileobj",
    "mkstemp",
    "memmap",
    "SummaryWriter",
    "save_file",
}
# into a stream, never to a path
SAVERS = {"save", "savez", "savez_compressed", "savefig", "imsave", "imwrite"}
STREAMS = {"file", "buffer", "packed", "drawn", "stream"}
MODES = set("wax+")
OWN = {  # file -> calls it makes itself, with the reason beside it
    "models/durable.py": None,  # the door
    # a lock must not replace another: what is refused there is an answer
    "experiment/claim.py": {
        "link",
        "rename",
        "open",
    },
    # rows written in place, under errors of their own
    "slides/store.py": {"open", "ftruncate", "truncate", "replace"},
    "bags/files.py": {"memmap"},  # for reading
    "compare/bags.py": {"open"},  # gigabytes for a measurement, in a folder that is gone afterwards
    "compare/resident.py": {"write_text"},  # into /proc: the system counts anew
    "tasks/detection/measure.py": {"open"},  # os.devnull, for what pycocotools prints
    # drafts by other tools, in a folder of the export's own that is gone afterwards; they get a
    # name by `exporting/export.py`, once they are on the disk
    "exporting/formats/coreml.py": {"save", "chmod", "unlink"},
    "exporting/formats/executorch.py": {"write_bytes"},
    "exporting/formats/openvino.py": {"replace"},
    "exporting/formats/pt2.py": {"save"},
    "exporting/quantized/onnx.py": {"unlink"},
}


def writes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Calls that change the disk: line and name."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        if name == "open" and owner != "Image":
            modes = [
                arg.value
                for arg in given
                if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            ]
            flags = any("O_CREAT" in ast.unparse(arg) for arg in given)
            if flags or any(set(mode) & MODES and set(mode) <= set("rwaxbt+") for mode in modes):
                yield node.lineno, name
        elif (
            name in METHODS
            and isinstance(function, ast.Attribute)
            and owner not in {"weights", "self"}
        ):
            yield node.lineno, name
        elif name in SAVERS and isinstance(function, ast.Attribute):
            targets = {ast.unparse(arg) for arg in node.args[:2]} | {
                "file" for arg in node.args if "file" in ast.unparse(arg)
            }
            if not targets & STREAMS and owner not in {
                "checkpoint",
                "run.checkpoints",
                "drawing",
                "store",
                "draw_panels(chosen.panels(cases, marks))",
            }:
                yield node.lineno, name
        elif (
            name == "replace"
            and owner
            and len(node.args) == 1
            and not node.keywords
            and owner != "dataclasses"
        ):
            yield node.lineno, name


def test_nothing_else_changes_the_disk():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = OWN.get(path.relative_to(PACKAGE).as_posix(), set())
        if own is not None:
            found += [
                f"{path.relative_to(ROOT)}:{line}: {name}: go through softless.models.durable"
                for line, name in writes(ast.parse(path.read_text()))
                if name not in own
            ]
    assert not found, "\n".join(found)


def test_the_list_of_exceptions_is_needed():
    for name, own in OWN.items():
        made = {found for _, found in writes(ast.parse((PACKAGE / name).read_text()))}
        assert own is None or own <= made, f"{name}: {own - made} are not called there any more"


@pytest.mark.parametrize(
    "line",
    [
        'open(path, "w")',
        'path.open("ab")',
        'path.open(mode="x")',
        "os.open(path, os.O_RDWR | os.O_CREAT)",
        "path.write_text(text)",
        "folder.mkdir()",
        "os.makedirs(folder)",
        "beside.replace(path)",
        "figure.savefig(path)",
        "image.save(path)",
        "np.savez(path, a=a)",
        "torch.save(state, path)",
        "frame.to_csv(path)",
        "shutil.rmtree(folder)",
        "path.unlink()",
        "SummaryWriter.save_file(t, p)",
    ],
)
def test_the_rule_sees_it(line: str):
    assert list(writes(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        'open(path, "rb")',
        'text.replace("a", "b")',
        "image.save(buffer, 'PNG')",
        "Image.open(path)",
        "write_text(path, text)",
    ],
)
def test_the_rule_lets_reading_be(line: str):
    assert not list(writes(ast.parse(line)))
