"""What a run ended with, so that two runs can be compared to the last bit."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from softless.experiment.checkpoints import Checkpoints

UNTIMED = ("seconds", "images_per_second")


def end_of(run: Path) -> str:
    """SHA-256 of the last state (weights, average, optimiser, schedule, scaler), the best weights
    and the log without its times.
    """
    found = hashlib.sha256()
    state = Checkpoints(run / "checkpoints").newest()
    assert state is not None
    state["partial"]["seconds"] = 0.0
    _feed(found, state)
    found.update((run / "best.safetensors").read_bytes())
    for line in (run / "log.jsonl").read_text().splitlines():
        _feed(
            found, {name: value for name, value in json.loads(line).items() if name not in UNTIMED}
        )
    return found.hexdigest()


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found.update(
            f"{value.dtype}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes()
        )
    elif isinstance(value, dict):
        for key in value:
            found.update(str(key).encode())
            _feed(found, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(found, item)
    else:
        found.update(repr(value).encode())
