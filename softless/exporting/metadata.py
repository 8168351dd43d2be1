"""What every exported file says of itself: enough to prepare an image and to read an answer in a
process that has never seen the run.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from softless.errors import DataError, UsageError
from softless.experiment.files import BEST_RULES
from softless.experiment.recipe import Recipe, as_json, recipe_from
from softless.models.records import DIGEST, SIDES, TABLE, TEXT, TEXTS, Rule, check, parsed, whole

KEY = "softless"  # under which a file keeps it
VERSION = 1  # of this layout
LARGEST = 1 << 22  # characters
ANEW = "export the model anew"
# fields of best.json that answers need; scores of the run stand in `accuracy`
KEPT = (
    "task",
    "architecture",
    "classes",
    "image_size",
    "in_chans",
    "crop_pct",
    "crop_mode",
    "interpolation",
    "mean",
    "std",
    "pixels",
    "range",
    "threshold",
    "trained_at",
    "operators",
    "weights_sha256",
)
# fields of a recipe that name a place on the machine that trained
PLACES = (("data", "path"), ("table", "path"), ("model", "weights"))
RULES: dict[str, Rule] = {
    "version": (lambda value: value == VERSION, f"{VERSION}"),
    "name": TEXT,
    "best": TABLE,
    "recipe": (lambda value: value is None or isinstance(value, dict), "a table or null"),
    "size": SIDES,
    "outputs": TEXTS,
    "form": TEXT,
    "batch": whole(1),
    "dynamic": (lambda value: value in {None, "batch", "size", "both"}, "batch, size, both, null"),
    "step": whole(1),
    "pixels": (lambda value: value in {"normalised", "uint8"}, "normalised or uint8"),
    "int8": (lambda value: value is None or isinstance(value, dict), "a table or null"),
    "weights_sha256": DIGEST,
    "versions": TABLE,
    "audit": (lambda value: value is None or isinstance(value, dict), "a table or null"),
    "accuracy": (lambda value: value is None or isinstance(value, dict), "a table or null"),
    "decoding": (lambda value: value is None or isinstance(value, dict), "a table or null"),
}


@dataclass(frozen=True)
class Metadata:
    """What a file says of itself. No path, user, host or time of a machine is in it."""

    name: str  # of the model: its architecture
    best: Mapping[str, Any]  # classes and how images are prepared, as best.json has them
    recipe: Mapping[str, Any] | None  # of the run, without places on its machine
    size: tuple[int, int]  # height and width in pixels that it was recorded with
    outputs: tuple[str, ...]
    form: str  # edge or plain
    weights_sha256: str  # of the weights that it was made of
    versions: Mapping[str, str]
    batch: int = 1  # images at once, where that is not free
    dynamic: str | None = None
    step: int = 1  # pixels that both sides are multiples of
    pixels: str = "normalised"  # or uint8: the file normalises itself
    token_scale: str | float | None = None
    int8: Mapping[str, Any] | None = None  # how it was quantised, and with which images
    audit: Mapping[str, Any] | None = None  # of the file
    accuracy: Mapping[str, Any] | None = None  # of the file, on test images
    decoding: Mapping[str, Any] | None = None  # what makes boxes of a detector's maps
    version: int = field(default=VERSION)

    @property
    def task(self) -> str:
        """One of `softless.experiment.groups.TASKS`."""
        return str(self.best.get("task", "classification"))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in index order; () of a model that was never trained on named ones."""
        return tuple(self.best["classes"])

    @property
    def in_chans(self) -> int:
        """Channels of an image."""
        return int(self.best["in_chans"])

    def as_text(self) -> str:
        """JSON, the same for the same content."""
        return json.dumps(asdict(self), sort_keys=True)


def read_metadata(text: str, path: Path) -> Metadata:
    """What a file says of itself.

    Args:
        text: JSON that a format kept.
        path: of the file, for the message.

    Raises:
        DataError: none, of another version, or damaged.
    """
    if not text:
        raise DataError(
            f"{path} says nothing of its classes and preparation: only files of `softless export` "
            "do; export the model anew"
        )
    if len(text) > LARGEST:
        raise DataError(f"{path}: its description has {len(text):,} characters, at most {LARGEST}")
    content = parsed(text, path, dict, mend=ANEW)
    check(content, RULES, path, mend=ANEW)
    best_rules = {name: rule for name, rule in BEST_RULES.items() if name.rstrip("?") in KEPT}
    check(content["best"], best_rules, path, mend=ANEW)
    known = {name: content[name] for name in Metadata.__dataclass_fields__ if name in content}
    known |= {name: tuple(known[name]) for name in ("size", "outputs")}
    return Metadata(**known)


def shareable(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON without places on the machine that trained.

    >>> from softless.recipes import RECIPES
    >>> shareable(RECIPES["digits"]())["data"]["path"] is None
    True
    """
    content = as_json(recipe)
    for group, name in PLACES:
        if isinstance(content.get(group), dict):
            content[group][name] = None
    return content


def recipe_of(metadata: Metadata, path: Path) -> Recipe:
    """The recipe that a file was trained by.

    Raises:
        UsageError: the file was made of a model that no run trained.
        DataError: the recipe in it is damaged.
    """
    if metadata.recipe is None:
        raise UsageError(
            f"{path} was exported from a model by itself and not from a run, so it names no "
            "classes: export the folder of a run, or of softless.save_weights(…, classes=[…])"
        )
    try:
        return recipe_from(metadata.recipe, strict=False)
    except (UsageError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: its recipe is damaged: {error}; export it anew") from error
