"""Every registered model at its full width and few blocks, in the formats of every installation."""

from pathlib import Path

import torch

from softless.models import ENTRIES
from tests.exporting.written import living, reference, written
from tests.models.kinds import FEW_BLOCKS
from tests.models.lively import zeroed

FORMATS_HERE = ("pt2", "onnx")
SIZE = (64, 96)
NEAR = 1e-5  # of the largest logit, in float32


def names_of(*hosts: str) -> list[str]:
    """Registered models of some hosts, aliases left out."""
    return [
        name
        for name, entry in ENTRIES.items()
        if entry.alias_of is None and entry.variant.host in hosts
    ]


def check_formats(name: str, folder: Path) -> None:
    """Files answer as the model; without its attention the model answers otherwise."""
    model = living(name, SIZE, **FEW_BLOCKS[ENTRIES[name].variant.host], num_classes=10)
    images = torch.randn(2, 3, *SIZE)
    wanted = reference(model, SIZE, images)
    files = [written(model, format, folder, SIZE, images=images) for format in FORMATS_HERE]
    for file in files:
        assert file.module.form == "edge", file.module.why
        assert file.apart(wanted, images) <= NEAR, file.record.name
        assert (file.shape.rank or 0) <= 4, file.record.name
    wanted = reference(zeroed(model), SIZE, images)
    for file in files:
        assert file.apart(wanted, images) > 100 * NEAR, file.record.name
