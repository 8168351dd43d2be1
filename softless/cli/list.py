"""`softless list`: what there is, by name."""

from dataclasses import dataclass
from typing import Any, Literal

import softless.models  # noqa: F401 - registers them
from softless import OPERATORS
from softless.attention.record import Backend, Dims, Operator
from softless.errors import UsageError, unknown
from softless.experiment.fields import FieldRow, shown, walk
from softless.experiment.names import ALIASES, canonical
from softless.exporting.formats.standing import standing
from softless.exporting.formats.table import FORMATS
from softless.layers.companions import COMPANIONS
from softless.models.bag import bag_models
from softless.recipes import RECIPES, get_recipe

KINDS = ("models", "operators", "recipes", "backends", "formats")


@dataclass(frozen=True)
class RecipeFields:
    """Every field of a recipe: its value there, what it takes and what it is."""

    recipe: str
    summary: str
    rows: tuple[FieldRow, ...]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """By dotted name."""
        return {
            row.name: {
                "default": row.value,
                "takes": row.setting.takes(row.hint),
                "range": row.setting.range,
                "unit": row.setting.unit,
                "says": row.setting.says,
            }
            for row in self.rows
        }

    def __str__(self) -> str:

        cells = [
            (row.name, shown(row.value), row.setting.takes(row.hint), row.setting.says)
            for row in self.rows
        ]
        name, value = (max(len(row[column]) for row in cells) for column in (0, 1))
        lines = [f"{a:<{name}}  {b:<{min(value, WIDE)}}  {d}: {c}" for a, b, c, d in cells]
        return "\n".join([
            f"{self.recipe}: {self.summary}",
            "set with --set NAME=VALUE",
            "",
            *lines,
        ])


WIDE = 24  # characters of a column of values


def list(
    what: Literal["models", "operators", "recipes", "backends", "formats"] | None = None,
    pattern: str | None = None,
    *,
    backends: bool = False,
) -> dict[str, str] | dict[str, dict[str, str]] | RecipeFields:
    """List models, operators, recipes, backends and formats of `softless export`; `softless list
    recipes NAME` shows every field of a recipe.

    Args:
        what: one of the five kinds; all of them without it. Operators come with their options,
            formats with what they need and whether that is installed.
        pattern: only names that hold this text, or that it fits (`sima_*_224`). A recipe's whole
            name: all its fields, with default, range, unit and one line. An operator's: its
            formula, paper, claims and options.
        backends: the backends of each operator, with what they have on this machine or why they
            cannot run here.

    Returns:
        Name -> one line; for operators and formats name -> their lines; for one recipe its fields.

    Raises:
        UsageError: another kind, two kinds at once, or no such name.

    Examples:
        >>> softless.list("models", "sima_deit_tiny")
        {'sima_deit_tiny_patch16_224': ''}
        >>> softless.list("operators", "relu_*")["relu_linear"]["option eps"]
        'smallest sum of weights that is divided by; a positive number; 1e-06 by default'
    """
    if backends and what not in {None, "backends"}:
        raise UsageError(f"list {what} --backends asks for two kinds at once: leave one out")
    what = "backends" if backends else what

    names = {
        "models": _models,
        "operators": _operators,
        "recipes": _recipes,
        "backends": _backends,
        "formats": _formats,
    }
    if what is None:
        return {kind: names[kind]() for kind in KINDS}
    if what not in names:
        raise unknown("kind of names", what, KINDS)
    if what == "operators" and (pattern is None or pattern not in names[what]()):
        return _options_of(
            names[what]() if pattern is None else _fitting(what, names[what](), pattern)
        )
    if what == "formats":
        fitting = names[what]() if pattern is None else _fitting(what, names[what](), pattern)
        return {
            name: {"what": FORMATS[name].summary, **standing(FORMATS[name])} for name in fitting
        }
    if pattern is None:
        return names[what]()
    if what == "recipes" and (pattern.endswith(".py") or _recipe_name(pattern) in names[what]()):
        return _fields(_recipe_name(pattern))
    if what == "operators":
        return _operator(pattern)
    return _fitting(what, names[what](), pattern)


def _fitting(kind: str, named: dict[str, str], pattern: str) -> dict[str, str]:
    from fnmatch import fnmatch

    some = any(sign in pattern for sign in "*?[")
    matching = {
        name: summary
        for name, summary in named.items()
        if (fnmatch(name, pattern) if some else pattern in name)
    }
    if not matching:
        raise unknown(kind.removesuffix("s"), pattern, named)
    return matching


def _fields(recipe: str) -> RecipeFields:

    loaded = get_recipe(recipe)
    return RecipeFields(recipe, loaded.summary, tuple(walk(loaded)))


def _operator(name: str) -> dict[str, str]:

    op = OPERATORS[name]
    beside = {
        f"companion {key}": f"{summary}; off by default" for key, summary in COMPANIONS.items()
    }
    entries = {
        "what": op.summary,
        "formula": op.formula,
        "paper": op.paper,
        "module": f"softless.{op.title}",
        "grows with": op.growth,
    }
    return {**entries, **_cost(op), **_claims(op), **_options(op), **beside}


def _options(op: Operator) -> dict[str, str]:
    """Each option of an operator: what it does, what it takes, its default."""
    return {
        f"option {key}": f"{option.says}; {option.values}; {option.default!r} by default"
        for key, option in op.options.items()
    }


def _options_of(summaries: dict[str, str]) -> dict[str, dict[str, str]]:
    """The summary of each operator and its options."""
    return {
        name: {"what": summary, **(_options(OPERATORS[name]) or {"options": "none"})}
        for name, summary in summaries.items()
    }


def _cost(op: Operator) -> dict[str, str]:
    """Of the attention of a DeiT-S block at 224 px: 6 heads of 64 channels, 14 x 14 patches and a
    class token.
    """
    dims = Dims(B=1, H=6, N=197, M=197, D=64, E=64, grid=(1, 14, 14), options=op.filled({}))
    return {
        "cost": f"{op.flops(dims) / 2e6:.1f} M multiply-adds and {op.exps(dims):,} "
        "transcendentals in the attention of a DeiT-S block"
    }


def _claims(op: Operator) -> dict[str, str]:
    """What the contract measures of it, in words."""
    needs = [need for need in op.needs if op.wants(need, {})]
    claims = {
        "normalises": op.normalises,
        "a permutation of tokens": "permutes the output"
        if op.equivariant
        else "gives another output",
        "matrix between tokens": "yes" if op.implied_matrix else "no",
        "other queries than keys": "yes" if op.cross else "no",
        "resolution": op.resolution,
        "masks": ", ".join(op.masks),
        "needs": ", ".join(needs) or "nothing",
        "chunks": f"{op.sweeps} sweeps; {op.streaming.holds}"
        if op.streaming
        else f"none: {op.no_stream}",
    }
    return {**claims, **({"differs": op.differs} if op.differs else {})}


def _models() -> dict[str, str]:
    import timm

    names = [
        name
        for name in timm.list_models()
        if timm.model_entrypoint(name).__module__.startswith("softless.")
    ]
    return dict.fromkeys(names, "") | bag_models()


def _operators() -> dict[str, str]:

    return {name: operator.summary for name, operator in OPERATORS.items()}


def _backends() -> dict[str, str]:
    import torch

    sample = torch.ones(1, 1, 4, 2)

    def standing(operator: Operator, backend: Backend) -> str:
        if why := backend.refuses(sample, sample, sample, **operator.filled({})):
            return f"{backend.name} not here: {' and '.join(why)}"
        return f"{backend.name} ({backend.here()})" if backend.here else backend.name

    return {
        name: ", ".join(standing(operator, backend) for backend in operator.backends)
        for name, operator in OPERATORS.items()
    }


def _formats() -> dict[str, str]:
    return {name: record.summary for name, record in FORMATS.items()}


def _recipes() -> dict[str, str]:

    older = {new: old for old, new in ALIASES.items()}
    suffixes = {name: f" (also: {older[name]})" if name in older else "" for name in RECIPES}
    return {name: make().summary + suffixes[name] for name, make in RECIPES.items()}


def _recipe_name(name: str) -> str:

    return canonical(name)
