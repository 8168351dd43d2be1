"""The recipes of a comparison: the same in every field, but for the operator and what only some operators understand."""

from collections.abc import Sequence
from dataclasses import replace

from softless.attention import OPERATORS, get
from softless.errors import UsageError
from softless.training.recipe import ModelSpec, Recipe


def host_and_operator(model: ModelSpec) -> tuple[str, str]:
    """The host's name and the operator in it: a registered name stands for both."""
    from softless.models.variants import ENTRIES

    if model.name in ENTRIES:
        entry = ENTRIES[model.name]
        return entry.variant.name, entry.op
    return model.name, model.op or "softmax"


def with_operator(recipe: Recipe, op: str) -> Recipe:
    """The recipe with another operator in the same host; options that the operator does not have are left out."""
    record = get(op)
    host, _ = host_and_operator(recipe.model)
    known = {name for other in OPERATORS.values() for name in other.options}
    args = {name: value for name, value in recipe.model.args.items() if name not in known or name in record.options}
    return replace(recipe, model=replace(recipe.model, name=host, op=op, args=args))


def left_out(recipe: Recipe, op: str) -> dict[str, object]:
    """Operator options of the recipe that `op` does not have."""
    kept = with_operator(recipe, op).model.args
    return {name: value for name, value in recipe.model.args.items() if name not in kept}


def checked_operators(ops: Sequence[str]) -> list[str]:
    """The operators to compare.

    Raises:
        UsageError: an unknown one, one twice, or fewer than two.
    """
    names = [get(op).name for op in ops]
    if len(set(names)) != len(names) or len(names) < 2:
        raise UsageError(
            f"a comparison takes at least two different operators, got {', '.join(names) or 'none'}: for example --ops sima softmax"
        )
    return names
