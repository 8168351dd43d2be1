"""Writes tests/models/golden.json anew and shows what changed: `python -m tests.models.golden`."""

import json

import torch

from tests.models.lively import outputs
from tests.models.test_models import GOLDEN, NAMES, image, small


def main() -> None:
    old = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    new = {}
    for name in NAMES:
        model, x = small(name).double(), image().double()
        with torch.no_grad():
            logits = [round(value, 9) for value in model(x)[0, :5].tolist()]
        sizes = {
            branch: round(out.square().mean().sqrt().item(), 9)
            for branch, out in outputs(model, x).items()
        }
        new[name] = {"logits": logits, "branches": sizes}
        if new[name] != old.get(name):
            print(f"{name}: {old.get(name)} -> {new[name]}")
    GOLDEN.write_text(json.dumps(new, indent=1) + "\n")


if __name__ == "__main__":
    main()
