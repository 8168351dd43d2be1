"""`push_to_hub`: a model into a repository of the hub."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from softless.errors import UsageError, located
from softless.models import digests
from softless.models.card import completed, written
from softless.models.durable import write_text
from softless.models.files import CARD, CONFIG, FILE
from softless.models.hub import NAME, OURS, asked, is_ours
from softless.models.publish import save_weights
from softless.models.published import published_model


def push_to_hub(
    source: nn.Module | str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
    licence: str | None = None,
) -> str:
    """Write a model into a repository of the hub, made where there is none: weights, config.json,
    digests and a model card.

    `softless.create_model("hf-hub:OWNER/NAME", pretrained=True)` loads it again. The card says what
    the run says of data, recipe and accuracy, and what the model costs; no path of this machine.

    Args:
        source: the folder of a run or of `save_weights`, or a model that `save_weights` can write.
        repository: OWNER/NAME.
        private: whether a new repository is seen by its owner alone.
        revision: a branch; None is the main one.
        message: of the commit.
        token: of the hub; None takes the one that this machine has.
        licence: as the hub names it ("mit"); None leaves it open, and the card says so.

    Returns:
        The address of the repository.

    Raises:
        UsageError: no model, no name of a repository, or a hub that refuses it.
        DataError: a damaged folder, or a hub that gives no answer.

    Examples:
        >>> softless.push_to_hub("runs/digits", "digits")
        Traceback (most recent call last):
        softless.errors.UsageError: 'digits' is no repository of the hub: it is OWNER/NAME
    """
    if not NAME.fullmatch(repository):
        raise UsageError(f"'{repository}' is no repository of the hub: it is OWNER/NAME")
    from huggingface_hub import CommitOperationAdd, HfApi

    interface = HfApi(token=token)
    with _folder_of(source) as folder, tempfile.TemporaryDirectory() as beside:
        card, stored = Path(beside) / CARD, folder / CARD
        model = published_model(folder)
        text = stored.read_text(encoding="utf-8") if stored.is_file() else _card(folder, model)
        write_text(card, completed(text, model, f"hf-hub:{repository}", licence))

        sources = {name: folder / name for name in OURS if (folder / name).is_file()} | {CARD: card}

        def upload() -> str:
            address = interface.create_repo(repository, private=private, exist_ok=True)
            if revision is not None:
                interface.create_branch(repository, branch=revision, exist_ok=True)
            interface.create_commit(
                repository,
                [CommitOperationAdd(name, path) for name, path in sources.items()],
                revision=revision,
                commit_message=message or "A model of softless",
            )
            return str(address)

        return asked(upload, f"the repository '{repository}' cannot be written", refused=True)


@contextmanager
def _folder_of(source: nn.Module | str | Path) -> Iterator[Path]:
    """The folder of `save_weights` that a source is, holds or becomes.

    Raises:
        UsageError: it is none.
        DataError: the folder is damaged.
    """
    if isinstance(source, nn.Module):
        with tempfile.TemporaryDirectory() as place:
            yield save_weights(source, Path(place) / "model")
        return
    folder = located(source)
    folder = next((at for at in (folder, folder / "model") if (at / CONFIG).is_file()), folder)
    if not is_ours(folder) or not (folder / FILE).is_file():
        raise UsageError(
            f"{folder} holds no model: name a finished run of a classifier, or a folder of "
            "save_weights"
        )
    for name in (CONFIG, FILE):
        digests.check(folder / name)
    yield folder


def _card(folder: Path, model: nn.Module) -> str:
    """Of a folder that has none: an older softless wrote it."""
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return written(content, {}, sum(parameter.numel() for parameter in model.parameters()))
