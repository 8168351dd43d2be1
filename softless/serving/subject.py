"""What is served: a run, a published model or an exported file, with a twin where one is named, and
the run's own test images.
"""

import copy
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from softless.data.samples import Samples
from softless.evaluation.run import LoadedRun
from softless.measure.cost import Cost, cost
from softless.prediction.setting import Setting

KEPT = 64  # sizes of images whose cost is kept


@dataclass(frozen=True)
class Served:
    """A model that answers, how, and what it is called."""

    loaded: LoadedRun
    setting: Setting
    name: str  # of its model and operators, no place of the machine
    precision: str  # float32, bfloat16 or float16; int8 of a file
    exported: bool = False  # whether it is a file, without layers to look into
    learned: str = ""  # what it was trained on, in words

    def fresh(self) -> "Served":
        """A copy of the modules, with the same weights in memory, that nothing has touched."""
        model = self.loaded.model
        if self.exported:
            return self
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        return replace(self, loaded=replace(self.loaded, model=copy.deepcopy(model, tensors)))


@dataclass
class Subject:
    """What requests are answered by, in the thread that computes."""

    served: Served
    twin: Served | None = None
    test: "TestImages | None" = None
    costs: "OrderedDict[Any, Cost | None]" = field(default_factory=OrderedDict)

    def fresh(self) -> "Subject":
        """The same with models that nothing has touched."""
        twin = None if self.twin is None else self.twin.fresh()
        return replace(self, served=self.served.fresh(), twin=twin, costs=OrderedDict())

    def cost(self, served: Served, size: tuple[int, ...]) -> Cost | None:
        """What an image (C, H, W) costs a model; None of an exported file."""
        if served.exported:
            return None
        key = (served is self.twin, size)
        if key not in self.costs:
            self.costs[key] = cost(served.loaded.model, size)
            while len(self.costs) > KEPT:
                self.costs.popitem(last=False)
        self.costs.move_to_end(key)
        return self.costs[key]


@dataclass(frozen=True)
class TestImages:
    """Some of the images that the run was tested on."""

    __test__ = False  # what pytest would collect

    samples: Samples
    classes: tuple[str, ...]
    dense: bool

    def __len__(self) -> int:
        return len(self.samples)

    def truth(self, index: int) -> str | None:
        """The class of an image, or its labels; None where they are boxes or areas."""
        if self.dense:
            return None
        target = self.samples.target(index)
        if isinstance(target, int):
            return self.classes[target]
        names = [name for name, labelled in zip(self.classes, target, strict=True) if labelled]
        return ", ".join(names) or "no label"


def memory_free() -> int:
    """Bytes that the system could give now; 8 GiB where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(
            int(line.split()[1]) for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration, ValueError):
        return 8 << 30


@torch.no_grad()
def prepared(served: Served, picture: Any) -> torch.Tensor:
    """A picture as the model takes it: (C, h, w)."""
    tensor: torch.Tensor = served.loaded.transform(picture)
    return tensor
