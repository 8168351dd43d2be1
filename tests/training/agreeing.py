"""One rank of test_agreement: `agreeing.py FOLDER [resume]` trains FOLDER/recipe{RANK}.pickle as
the command line would.
"""

import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

from softless.cli import main as cli
from softless.training import fit, loop


def main(folder: Path, *, resume: bool) -> int:
    rank = os.environ["RANK"]
    recipe = pickle.loads((folder / f"recipe{rank}.pickle").read_bytes())
    step = loop.train_step

    def stepped(run: Any, batch: Any, number: int) -> Any:
        (folder / f"step{rank}").write_text(str(run.updates))
        if (folder / f"hang{rank}").exists():
            time.sleep(1000)
        return step(run, batch, number)

    loop.train_step = stepped  # type: ignore[assignment]

    def train(_: Any) -> int:
        fit(recipe, folder / "run", resume=resume, device="cpu", progress=False)
        return 0

    return cli.main(["train"], run=train)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), resume="resume" in sys.argv))
