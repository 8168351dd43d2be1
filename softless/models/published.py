"""A folder of `save_weights` by what people name it with: `local-dir:FOLDER`, the folder, or
`hf-hub:OWNER/NAME`.
"""

from pathlib import Path
from typing import Any

from torch import nn

from softless.errors import DataError, located
from softless.models.create import FOLDER, create_model
from softless.models.files import CONFIG
from softless.models.hub import hub_folder, is_ours, names_hub


def published_folder(name: str | Path) -> Path | None:
    """The folder that a name stands for; None of the name of a model, a file or another folder.

    Raises:
        DataError: a repository of the hub that cannot be fetched.
    """
    if names_hub(name):
        folder = hub_folder(str(name))
        return folder if is_ours(folder) else None
    if str(name).startswith(FOLDER):
        return located(str(name).removeprefix(FOLDER))
    folder = located(name)
    return folder if (folder / CONFIG).is_file() else None


def names_folder(name: str | Path) -> bool:
    """Whether a name stands for a folder, of `save_weights` or of a run, and not for a model."""
    if names_hub(name):
        return published_folder(name) is not None
    return str(name).startswith(FOLDER) or located(name).is_dir()


def published_model(folder: Path) -> nn.Module:
    """The model of a folder of `save_weights` with its weights, in evaluation.

    Raises:
        DataError: there is none, or it is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise DataError(
            f"{folder} holds no published model ({CONFIG}): name a folder that "
            "softless.save_weights wrote"
        )
    model: Any = create_model(f"{FOLDER}{folder}", pretrained=True)
    return model.eval()
