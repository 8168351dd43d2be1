"""An exported file in the place of a run: where the verbs take one, and what they say where not."""

from pathlib import Path

import torch

from softless.data.pictures import size_of
from softless.data.samples import Samples
from softless.errors import UsageError, located
from softless.evaluation.evaluate import chosen_amp, precision_of
from softless.evaluation.run import LoadedRun
from softless.exporting.loaded import ExportedModel, exported_run
from softless.exporting.names import is_file
from softless.tasks.loaded import load_run

WITHOUT_PATH = frozenset({"digits"})  # sources of data that come with a package


def run_or_file(run: str | Path, device: str | torch.device = "cpu") -> LoadedRun:
    """The run in a folder; an exported file or a folder of `save_weights` in its place.

    Raises:
        UsageError: a file that no run was exported to, or that this machine does not run.
        DataError: a run or file that cannot be read.
    """
    return exported_run(run) if is_file(run) else load_run(run, device)


def device_for(run: str | Path, device: str) -> str:
    """Where it is computed, by name: a file on the processor.

    Raises:
        UsageError: a file, and another device.
    """
    if not is_file(run):
        return device
    if device not in {"auto", "cpu"}:
        raise UsageError(
            f"--device {device}: {located(run).name} is run on the processor; leave --device out"
        )
    return "cpu"


def amp_for(amp: str | None, loaded: LoadedRun) -> str:
    """What it is computed in: a file in what is written in it.

    Raises:
        UsageError: no such precision, or one for a file.
    """
    if not isinstance(loaded.model, ExportedModel):
        return chosen_amp(amp, loaded)
    if amp not in {None, "none"}:
        raise UsageError(
            f"--amp {amp}: what {loaded.path.name} computes in stands in the file; leave --amp out"
        )
    return "none"


def precision_for(amp: str, loaded: LoadedRun) -> str:
    """What an output says of it: the type that matrix products are computed in."""
    model = loaded.model
    eight_bits = isinstance(model, ExportedModel) and model.metadata.int8 is not None
    return "int8" if eight_bits else precision_of(amp)


def check_named(loaded: LoadedRun, data: object, table: object) -> None:
    """Whether images are named, where a file or a published model says nothing of a place.

    Raises:
        UsageError: they are not.
    """
    source = loaded.recipe.data.source
    if data is None and table is None and source not in WITHOUT_PATH:
        raise UsageError(
            f"{loaded.path.name} does not say where labelled images are, since no place of the "
            f"machine that trained stands in it: softless eval {loaded.path.name} DATA"
        )


def check_sizes(loaded: LoadedRun, samples: Samples) -> None:
    """Whether a file answers images of these sizes, before the first is answered.

    Raises:
        UsageError: it does not; the first such image is named.
    """
    model = loaded.model
    if not isinstance(model, ExportedModel) or model.reader is None:
        return
    for index in range(len(samples)):
        width, height = size_of(samples.image(index))
        if reason := model.refuses(height, width):
            raise UsageError(f"{samples.name(index)}: {reason}")
