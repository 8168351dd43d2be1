"""`softless list`: what there is, by name."""

from typing import Literal

KINDS = ("models", "operators", "recipes", "backends")


def list(
    what: Literal["models", "operators", "recipes", "backends"] | None = None,
) -> dict[str, str] | dict[str, dict[str, str]]:
    """List models, operators, recipes and backends.

    Args:
        what: one of the four kinds; all of them without it.
    """
    from softless.errors import unknown

    names = {"models": _models, "operators": _operators, "recipes": _recipes, "backends": _backends}
    if what is None:
        return {kind: names[kind]() for kind in KINDS}
    if what not in names:
        raise unknown("kind of names", what, KINDS)
    return names[what]()


def _models() -> dict[str, str]:
    import timm

    import softless.models  # noqa: F401 - registers them

    ours = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("softless.")]
    return dict.fromkeys(ours, "")


def _operators() -> dict[str, str]:
    from softless import OPERATORS

    return {name: operator.summary for name, operator in OPERATORS.items()}


def _backends() -> dict[str, str]:
    from softless import OPERATORS

    return {name: ", ".join(backend.name for backend in operator.backends) for name, operator in OPERATORS.items()}


def _recipes() -> dict[str, str]:
    from softless.recipes import RECIPES

    return {name: make().summary for name, make in RECIPES.items()}
