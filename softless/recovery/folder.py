"""The folder of a recovery; each part of it is whole or not there.

request.json   what was asked for, and the digests of weights and images
refit/         the student after its refit, with which a recovery that was interrupted goes on
distil/        the run of the distillation
model/         what came out, as `softless.save_weights` writes it
report.html    the page
recover.json   all numbers; it is written last, so a folder that has it is finished
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softless import origin
from softless.convert.refit.refit import FittedLayer, Refitted, finite
from softless.convert.swap import Swapped
from softless.data.notices import notice
from softless.errors import DataError, ResumeMismatch, StorageError, UsageError, located
from softless.experiment.folder import RECIPE
from softless.models.digests import of_file
from softless.models.durable import (
    delete,
    delete_folder,
    make_folder,
    write_tensors,
    write_text,
)
from softless.models.files import FILE
from softless.models.publish import save_weights
from softless.models.records import read_json
from softless.models.state import read_weights
from softless.recovery.answers import Nearness
from softless.recovery.page import render
from softless.recovery.steps import DISTIL, REFIT
from softless.training.setup import machine

RECORD, PAGE, REQUEST, MODEL = "recover.json", "report.html", "request.json", "model"
OWN = (RECORD, PAGE, REQUEST, MODEL, REFIT, DISTIL, FILE)
ERRORS = ("stream_before", "stream_after", "branch_before", "branch_after")
STUDENT, FITTED = "student.safetensors", "refit.json"


@dataclass(frozen=True)
class StoredRefit:
    """A refit that was finished before."""

    state: Mapping[str, Tensor]  # of the student
    refitted: Refitted
    nearness: Nearness
    seconds: float
    numbers: Mapping[str, Any]  # gains and errors of attentions that were calibrated
    notes: tuple[str, ...]


class RecoveryFolder:
    """The folder that a recovery writes.

    Args:
        out: where it lies; a new folder, an empty one, or that of a recovery.
        resume: go on with what is there.
        overwrite: delete what is there, once the work begins.

    Raises:
        UsageError: there is a recovery, and neither is asked for; or other files.
    """

    def __init__(self, out: str | Path, *, resume: bool, overwrite: bool) -> None:
        self.path, self.resume, self.overwrite = located(out), resume, overwrite
        if resume and overwrite:
            raise UsageError("resume goes on with what is there and overwrite deletes it: give one")
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file: name a folder for what comes out")
        there = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
        if foreign := sorted(there - set(OWN)):
            raise UsageError(
                f"{self.path} holds files of something else ({foreign[0]}): name a new folder"
            )
        if there and not (resume or overwrite):
            raise UsageError(
                f"{self.path} holds a recovery that is finished: overwrite deletes it, or name "
                "another out"
                if RECORD in there
                else f"{self.path} holds a recovery that was not finished: resume goes on with "
                "it, overwrite begins anew"
            )

    def begin(self, request: Mapping[str, Any]) -> None:
        """Note what is asked for; of a recovery that goes on, compare it with what was.

        Raises:
            ResumeMismatch: something else was.
        """
        asked = json.loads(json.dumps(request, default=str))
        if self.overwrite:
            for name in OWN:
                path = self.path / name
                delete_folder(path) if path.is_dir() else delete(path)
        file = self.path / REQUEST
        if file.is_file():
            before: Any = read_json(file)
            wrong = [name for name in {**asked, **before} if asked.get(name) != before.get(name)]
            if wrong:
                name = wrong[0]
                raise ResumeMismatch(
                    f"cannot resume {self.path}: {name} was {before.get(name)} and is "
                    f"{asked.get(name)}; give what it began with, or another out"
                )
            return
        make_folder(self.path)
        write_text(file, json.dumps(asked, indent=1) + "\n")

    @property
    def run(self) -> Path:
        """Where the distillation runs."""
        return self.path / DISTIL

    @property
    def has_run(self) -> bool:
        """Whether a distillation began."""
        return (self.run / RECIPE).is_file()

    def keep_refit(
        self,
        student: nn.Module,
        refitted: Refitted,
        nearness: Nearness,
        seconds: float,
        swapped: Swapped | None,
        notes: tuple[str, ...],
    ) -> None:
        """Write the student's weights, then their digest and what is told of them."""
        folder = make_folder(self.path / REFIT)
        state = {
            name: value.detach().cpu().clone().contiguous()
            for name, value in student.state_dict().items()
        }
        write_tensors(folder / STUDENT, state, {"format": "pt"})
        content = {
            "sha256": of_file(folder / STUDENT),
            "layers": refitted.rows(),
            "images": refitted.images,
            "held_out": refitted.held_out,
            "seconds": refitted.seconds,
            "stream": finite(refitted.stream),
            "refit_notes": list(refitted.notes),
            "nearness": nearness.to_dict(),
            "step_seconds": seconds,
            "numbers": {}
            if swapped is None
            else {"gains": dict(swapped.gains), "errors": dict(swapped.errors)},
            "notes": list(notes),
        }
        write_text(folder / FITTED, json.dumps(content, indent=1) + "\n")

    def refit(self) -> StoredRefit | None:
        """The refit that was finished before, or None; a damaged one is done again, which is
        said.
        """
        folder = self.path / REFIT
        if not (folder / FITTED).is_file():
            return None
        try:
            content: Any = read_json(folder / FITTED)
            state = _state(folder / STUDENT, content["sha256"])
        except (DataError, OSError) as error:
            notice(f"the refit is done again: {error}")
            return None
        refitted = Refitted(
            tuple(map(_layer, content["layers"])),
            content["images"],
            content["held_out"],
            content["seconds"],
            math.nan if content["stream"] is None else content["stream"],
            tuple(content["refit_notes"]),
        )
        return StoredRefit(
            state,
            refitted,
            Nearness(**content["nearness"]),
            content["step_seconds"],
            {
                name: {path: tuple(each) for path, each in table.items()}
                for name, table in content["numbers"].items()
            },
            tuple(content["notes"]),
        )

    def finish(
        self,
        model: nn.Module,
        classes: tuple[str, ...],
        numbers: Mapping[str, Any],
        request: Mapping[str, Any],
    ) -> tuple[str, ...]:
        """Write model, page and record; returns what is to be said of the model.

        Args:
            model: what came out.
            classes: names of its outputs, where they are known.
            numbers: of `Recovered.to_dict`.
            request: what was asked for.
        """
        delete(self.path / RECORD)
        delete_folder(self.path / MODEL)
        said = self._write_model(model, classes)
        content = {
            "request": json.loads(json.dumps(request, default=str)),
            **numbers,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "weights_sha256": of_file(self._weights),
            "about": about(),
        }
        content["notes"] = [*content["notes"], *said]
        write_text(self.path / PAGE, render(content))
        text = json.dumps(_finite(content), indent=1, allow_nan=False)
        write_text(self.path / RECORD, text + "\n")
        return said

    @property
    def _weights(self) -> Path:
        published = self.path / MODEL / FILE
        return published if published.is_file() else self.path / FILE

    def _write_model(self, model: nn.Module, classes: tuple[str, ...]) -> tuple[str, ...]:
        """A folder that opens as a model; where nothing describes the model, its weights alone,
        which is said.
        """
        delete(self.path / FILE)
        try:
            save_weights(model, self.path / MODEL, classes=classes or None)
        except (DataError, StorageError):
            raise
        except UsageError as error:
            state = {
                name: value.detach().cpu().clone().contiguous()
                for name, value in model.state_dict().items()
            }
            write_tensors(self.path / FILE, state, {"format": "pt"})
            return (f"there is no {MODEL}, and its weights alone are in {FILE}: {error}",)
        return ()


def about() -> dict[str, Any]:
    """Command, date, commit, versions and machine."""
    return {
        "command": origin.command(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": origin.commit(origin.repository()),
        "versions": origin.versions(),
        "machine": machine(torch.device("cpu")),
    }


def _state(file: Path, sha256: str) -> dict[str, Tensor]:
    if of_file(file) != sha256:
        raise DataError(f"{file} is not what {FITTED} beside it describes")
    return read_weights(file)


def _layer(row: Mapping[str, Any]) -> FittedLayer:
    """A layer as JSON had it: what was not measured is not a number again."""
    values: dict[str, Any] = {
        name: math.nan if value is None and name in ERRORS else value for name, value in row.items()
    }
    return FittedLayer(**values)


def _finite(content: Any) -> Any:
    """The same with None in place of numbers that JSON has not."""
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return finite(content) if isinstance(content, float) else content
