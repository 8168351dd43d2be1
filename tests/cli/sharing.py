"""One rank of test_ranks: `sharing.py FOLDER` runs the commands of FOLDER/commands.json, one after
the other, as `softless` would.

FOLDER/rankR.json says of each its exit code, what it printed, and which images went through a
model.
"""

import contextlib
import hashlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import softless.cli.slide
import softless.tasks.loaded
from softless.cli.main import main

SEEN: list[str] = []


def digest(image: Tensor) -> str:
    return hashlib.sha256(image.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def noting() -> None:
    """Every classifier of a run notes the images that it is given, and `slide` the images that it
    streams.
    """
    fill, stream = softless.tasks.loaded.fill, softless.cli.slide.stream

    def filled(model: nn.Module, *rest: Any) -> None:
        fill(model, *rest)
        model.register_forward_pre_hook(lambda _, given: SEEN.extend(map(digest, given[0])))

    def streamed(model: Any, image: Any, **options: Any) -> Any:
        for module in model.modules():
            module._forward_pre_hooks.clear()  # streaming takes no hooks
        SEEN.append(str(image))
        return stream(model, image, **options)

    softless.tasks.loaded.fill = filled  # type: ignore[assignment]
    softless.cli.slide.stream = streamed


def run(words: list[str]) -> dict[str, Any]:
    SEEN.clear()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seen": list(SEEN)}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    noting()
    told = [run(words) for words in json.loads((folder / "commands.json").read_text())]
    (folder / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(told))
