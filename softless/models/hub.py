"""Models of the hub: `hf-hub:OWNER/NAME` in the place of a folder.

A repository that `push_to_hub` wrote is a folder of `save_weights`. Others are timm's: their
config.json names a model of timm.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from softless.errors import DataError, UsageError
from softless.models import digests
from softless.models.download import reaching
from softless.models.files import CARD, CONFIG, FILE
from softless.words import clipped

HUB = ("hf-hub:", "hf_hub:")  # as timm says it
NAME = re.compile(r"[a-zA-Z0-9_][\w.-]{0,95}/[a-zA-Z0-9_][\w.-]{0,95}", re.ASCII)
OURS = (CONFIG, FILE, digests.DIGESTS, CARD)
# of the client's messages: what helps nobody
NOISE = re.compile(r"\s*\(Request ID:[^)]*\)|\s*For more information check: \S+")
Answer = TypeVar("Answer")


def names_hub(name: object) -> bool:
    """Whether a name stands for a repository of the hub."""
    return str(name).startswith(HUB)


def hub_folder(name: str, *, weights: bool = True) -> Path:
    """The files of a repository, fetched into the hub's cache where they are not there yet.

    Args:
        name: `hf-hub:OWNER/NAME`, or `hf-hub:OWNER/NAME@REVISION`.
        weights: whether the weights are fetched too.

    Raises:
        UsageError: no name of a repository.
        DataError: it is neither in the cache nor to be had, or holds no config.json.
    """
    repository, revision = _parsed(name)
    from huggingface_hub import snapshot_download

    files = [file for file in OURS if weights or file != FILE]
    folder = Path(
        asked(
            lambda: snapshot_download(repository, revision=revision, allow_patterns=files),
            f"the repository '{repository}' is not on this machine and cannot be fetched",
        )
    )
    absent = [file for file in files if file in {CONFIG, FILE} and not (folder / file).is_file()]
    if absent:
        raise DataError(
            f"the repository '{repository}' holds no {absent[0]}: name one of a model of timm or "
            "of softless"
        )
    return folder


def is_ours(folder: Path) -> bool:
    """Whether `save_weights` wrote a folder."""
    return (folder / digests.DIGESTS).is_file()


def timms_model(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Name, arguments and preparation of images that a config.json of timm says.

    Raises:
        DataError: it is damaged, or names no model.
    """
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        name, arguments = content["architecture"], content.get("model_args") or {}
        about = content.get("pretrained_cfg") or {}
        number = content.get("num_classes", about.get("num_classes"))
        sound = isinstance(name, str) and isinstance(arguments, dict) and isinstance(about, dict)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise DataError(f"{folder / CONFIG} names no model of timm")
    keys = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation", "label_names")
    prepared = {key: about[key] for key in keys if about.get(key) is not None}
    if number is not None:
        arguments = {"num_classes": number, **arguments}
    return name, arguments, prepared


def _parsed(name: str) -> tuple[str, str | None]:
    """Repository and revision of a name."""
    repository, _, revision = name.partition(":")[2].partition("@")
    if not NAME.fullmatch(repository):
        raise UsageError(f"'{name}' names no repository of the hub: hf-hub:OWNER/NAME")
    return repository, revision or None


def asked(ask: Callable[[], Answer], problem: str, *, refused: bool = False) -> Answer:
    """The hub's answer, or a sentence.

    Args:
        ask: what is done.
        problem: what the sentence says could not be done.
        refused: whether a refusal is the caller's to mend.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    why = ""
    try:
        with reaching() as why:
            return ask()
    except HFValidationError as error:
        raise UsageError(f"{problem}: {_line(error)}") from error
    except HfHubHTTPError as error:
        kind = UsageError if refused else DataError
        raise kind(f"{problem}: {_line(error)}") from error
    except (OSError, LocalEntryNotFoundError) as error:  # the network, or the cache lacks the file
        raise DataError(f"{problem}: {why or _line(error)}") from error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return clipped(re.sub(NOISE, "", text), 200)
