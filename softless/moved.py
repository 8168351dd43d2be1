"""Modules that stand elsewhere now: `import` still finds them under their old names.

The names of `softless.__all__` never moved; these are for code that imported from further inside.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {  # before -> now
    "softless.data.boxes": "softless.tasks.detection.samples",
    "softless.data.box_transforms": "softless.tasks.detection.transforms",
    "softless.data.check": "softless.tasks.check",
    "softless.data.coco": "softless.tasks.detection.coco",
    "softless.data.label_images": "softless.tasks.segmentation.samples",
    "softless.data.label_transforms": "softless.tasks.segmentation.transforms",
    "softless.data.ranges": "softless.experiment.ranges",
    "softless.evaluation.detection": "softless.tasks.detection.measure",
    "softless.evaluation.multilabel": "softless.tasks.multilabel.measure",
    "softless.evaluation.segmentation": "softless.tasks.segmentation.measure",
    "softless.models.assemble": "softless.tasks.loaded",
    "softless.models.detectors": "softless.tasks.detection.model",
    "softless.models.segmenters": "softless.tasks.segmentation.model",
    "softless.models.self_supervised": "softless.tasks.dino.model",
    "softless.report.page": "softless.tasks.page",
    "softless.training.recipe": "softless.training",
    "softless.training.run_folder": "softless.experiment.folder",
}


class _Finder(MetaPathFinder, Loader):
    """Finds a moved module, which is then one module under two names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run under its new name, which it keeps."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def find_moved_modules() -> None:
    """Let imports of the old names find the modules."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def names_in(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` for names that stand elsewhere now.

    Args:
        package: the package.
        names: name -> the module that has it.
    """

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(names[name]), name)

    return attribute
