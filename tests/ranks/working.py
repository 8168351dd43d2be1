"""One rank of the table: `working.py FOLDER WORDS...` runs `softless WORDS`, slowly, and tells
FOLDER/atN how many images or steps it did.

SOFTLESS_OTHER makes this rank differ: `version`, or `data=FOLDER`, which then lies where the others
see their data.
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

import softless.cli.slide
import softless.tasks.loaded
from softless import origin
from softless.cli.main import main
from softless.training import loop

PAUSE = 0.3  # seconds of each image or step


def slowly(folder: Path) -> None:
    """Every step of training, every image of a run's model and every slide takes PAUSE longer, and
    is counted.
    """
    done = 0
    fill, step, stream = softless.tasks.loaded.fill, loop.train_step, softless.cli.slide.stream

    def count() -> None:
        nonlocal done
        done += 1
        (folder / f"at{os.environ['RANK']}").write_text(str(done))
        time.sleep(PAUSE)

    def filled(model: nn.Module, *rest: Any) -> None:
        fill(model, *rest)
        model.register_forward_pre_hook(lambda *_: count())

    def stepped(*given: Any) -> Any:
        count()
        return step(*given)

    def streamed(model: nn.Module, *given: Any, **options: Any) -> Any:
        for module in model.modules():
            module._forward_pre_hooks.clear()  # streaming takes no hooks
        count()
        return stream(model, *given, **options)

    softless.tasks.loaded.fill = filled  # type: ignore[assignment]
    softless.cli.slide.stream = streamed  # type: ignore[assignment]
    loop.train_step = stepped  # type: ignore[assignment]


def differ(how: str) -> None:
    """Make this rank another."""
    if how == "version":
        told = {**origin.versions(), "timm": "1.0.0"}
        origin.versions = lambda: told
    elif how.startswith("data="):
        opened = loop.open_task
        place = how.removeprefix("data=")
        loop.open_task = lambda recipe: opened(
            replace(recipe, data=replace(recipe.data, path=place))
        )


if __name__ == "__main__":
    slowly(Path(sys.argv[1]))
    differ(os.environ.get("SOFTLESS_OTHER", ""))
    sys.exit(main(sys.argv[2:]))
