"""`softless list`: what there is, by name."""

from typing import Literal

KINDS = ("models", "operators", "recipes", "backends")


def list(
    what: Literal["models", "operators", "recipes", "backends"] | None = None,
    *,
    backends: bool = False,
) -> dict[str, str] | dict[str, dict[str, str]]:
    """List models, operators, recipes and backends.

    Args:
        what: one of the four kinds; all of them without it.
        backends: the backends of each operator, with what they have on this machine or why they cannot run here.

    Raises:
        UsageError: another kind, or two kinds at once.
    """
    from softless.errors import UsageError, unknown

    if backends and what not in {None, "backends"}:
        raise UsageError(f"list {what} --backends asks for two kinds at once: leave one out")
    what = "backends" if backends else what

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
    import torch

    from softless import OPERATORS
    from softless.attention import Backend, Operator

    sample = torch.ones(1, 1, 4, 2)

    def said(operator: Operator, backend: Backend) -> str:
        if why := backend.refuses(sample, sample, sample, **operator.filled({})):
            return f"{backend.name} not here: {' and '.join(why)}"
        return f"{backend.name} ({backend.here()})" if backend.here else backend.name

    return {
        name: ", ".join(said(operator, backend) for backend in operator.backends)
        for name, operator in OPERATORS.items()
    }


def _recipes() -> dict[str, str]:
    from softless.recipes import RECIPES

    return {name: make().summary for name, make in RECIPES.items()}
