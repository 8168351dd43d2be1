"""One rank of test_soak: `ranks.py FOLDER` under torchrun. Trains with resume, and notes which
images each step saw.

spec.json: {"kill": [rank, updates]} sends that rank SIGKILL in its first life; {"stop": updates}
sends all ranks SIGTERM there.
"""

import json
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

from softless.data.loader import TransformedSamples
from softless.errors import SoftlessError
from softless.training import fit, loop


def main(folder: Path) -> int:
    spec = json.loads((folder / "spec.json").read_text())
    rank, first_life = (
        int(os.environ["RANK"]),
        os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0",
    )
    seen: list[list[int]] = []
    fetch, step = TransformedSamples.__getitems__, loop.train_step

    def fetched(self: TransformedSamples, positions: list[int]) -> Any:
        seen.append([int(position) for position in positions])
        return fetch(self, positions)

    def stepped(run: Any, batch: Any, number: int) -> Any:
        line = {
            "epoch": run.epoch,
            "step": number,
            "rank": rank,
            "world": run.world.size,
            "positions": seen[-1],
        }
        with (folder / f"seen{rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if first_life and spec.get("kill") == [rank, run.updates]:
            os.kill(os.getpid(), signal.SIGKILL)
        if spec.get("stop") == run.updates:
            os.kill(os.getpid(), signal.SIGTERM)
        found = step(run, batch, number)
        with (folder / f"loss{rank}.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": run.epoch, "step": number, "loss": found.loss}) + "\n")
        return found

    TransformedSamples.__getitems__ = fetched  # type: ignore[method-assign, assignment]
    loop.train_step = stepped  # type: ignore[assignment]
    recipe = pickle.loads((folder / "recipe.pickle").read_bytes())
    try:
        fit(recipe, folder / "run", resume=True, device="cpu", progress=False)
    except SoftlessError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
