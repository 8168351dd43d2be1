"""What `import softless` loads: counted, not timed.

And every module imports without any optional package.
"""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import requires
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What each optional distribution is imported as. An extra that is not here fails
# test_every_extra_is_blocked.
IMPORTED_AS = {
    "wandb": "wandb",
    "shtab": "shtab",
    "mlflow-skinny": "mlflow",
    "httpx": "httpx",
    "h5py": "h5py",
    "build": "build",
    "cmake": "cmake",
    "coremltools": "coremltools",
    "executorch": "executorch",
    "fastapi": "fastapi",
    "hypothesis": "hypothesis",
    "imagecodecs": "imagecodecs",
    "import-linter": "importlinter",
    "lightly": "lightly",
    "matplotlib": "matplotlib",
    "mypy": "mypy",
    "ninja": "ninja",
    "nncf": "nncf",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "openslide-bin": "openslide_bin",
    "openslide-python": "openslide",
    "openvino": "openvino",
    "peft": "peft",
    "pycocotools": "pycocotools",
    "pydicom": "pydicom",
    "pytest": "pytest",
    "pytest-xdist": "xdist",
    "python-multipart": "python_multipart",
    "rich": "rich",
    "ruff": "ruff",
    "scikit-build-core": "scikit_build_core",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "shapely": "shapely",
    "tensorboard": "tensorboard",
    "tifffile": "tifffile",
    "torchao": "torchao",
    "uvicorn": "uvicorn",
    "zarr": "zarr",
}

BLOCKED = """
import importlib, json, pkgutil, sys

for blocked in json.loads(sys.argv[1]):
    sys.modules[blocked] = None  # as if it were not installed: import raises, find_spec finds nothing
import softless

failed, count = {}, 0
def note(name):
    failed[name] = repr(sys.exc_info()[1])

for module in pkgutil.walk_packages(softless.__path__, "softless.", onerror=note):
    if module.name.endswith("__main__"):
        continue
    count += 1
    try:
        importlib.import_module(module.name)
    except Exception:
        note(module.name)
print(json.dumps({"failed": failed, "count": count}))
"""

LOADED = """
import json, socket, subprocess, sys

def refuse(*_, **__):
    raise RuntimeError("import softless reached out")

import timm
before = set(sys.modules)
socket.socket.connect = subprocess.Popen.__init__ = refuse
import softless
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def in_child(source: str, *arguments: str):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_extra_is_blocked():
    optional = [
        requirement for requirement in requires("softless") or [] if "extra ==" in requirement
    ]
    names = {re.split(r"[\s\[<>=!~;]", requirement)[0].lower() for requirement in optional} - {
        "softless"
    }
    assert names == set(IMPORTED_AS)


def test_every_module_imports_without_optional_packages():
    answer = in_child(BLOCKED, json.dumps(list(IMPORTED_AS.values())))
    assert answer["failed"] == {}
    # softless itself, __main__
    assert answer["count"] >= len(list((ROOT / "softless").rglob("*.py"))) - 2


HEAVY = [
    "torchmetrics",
    "sklearn",
    "matplotlib",
    "rich",
    "tensorboard",
    "pandas",
    "scipy",
    "onnx",
    "torchvision.transforms.v2",
    "torch._dynamo",
    "torch._inductor",
    "torch.onnx",
]


@cache
def loaded_by_softless() -> list[str]:
    """The modules that `import softless` loads after `import timm`, where connecting or starting a
    process raises.
    """
    return in_child(LOADED)


def test_importing_softless_loads_nothing_heavy_beyond_timm():
    loaded = loaded_by_softless()
    packages = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert packages <= {"softless", "timm", "torch", "torchvision", "numpy", "PIL", "safetensors"}
    assert [
        name
        for name in loaded
        if any(name == heavy or name.startswith(heavy + ".") for heavy in HEAVY)
    ] == []


def test_importing_softless_loads_few_modules():
    """Half a second over `import timm` (design §3) is bought by modules: ours that a model needs,
    and few others.
    """
    loaded = loaded_by_softless()
    ours = [name for name in loaded if name.startswith("softless")]
    assert len(loaded) - len(ours) <= 30, sorted(set(loaded) - set(ours))


def test_nothing_of_one_system_alone_is_imported_at_once_or_called():
    """Windows lacks these modules, and there `os.kill(pid, 0)` is Ctrl-C: a function imports them,
    or says what it needs.
    """
    alone, found = {"fcntl", "grp", "pwd", "resource", "termios"}, []
    for file in sorted((ROOT / "softless").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            names = {one.name for one in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
            found += [f"{file.relative_to(ROOT)} imports {name}" for name in names & alone]
        if file.name != "processes.py":
            called = [
                ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)
            ]
            found += [f"{file.relative_to(ROOT)} calls os.kill"] * called.count("os.kill")
    assert found == []
