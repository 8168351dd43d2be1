"""The recipes of a comparison: the same in every field, but for the operator and what only some
operators understand.
"""

from collections.abc import Sequence
from dataclasses import replace

from softless.attention.registry import OPERATORS, get
from softless.errors import UsageError
from softless.experiment.groups import ModelSpec
from softless.experiment.recipe import Recipe
from softless.models.sides import sides
from softless.models.variants import BUILT_HERE, ENTRIES
from softless.recipes import get_recipe


def host_and_operator(model: ModelSpec) -> tuple[str, str]:
    """The host's name and the operator in it: a registered name stands for both."""
    if model.name in ENTRIES:
        entry = ENTRIES[model.name]
        return entry.variant.name, entry.op
    return model.name, model.op or "softmax"


def with_operator(recipe: Recipe, op: str) -> Recipe:
    """The recipe with another operator in the same host; options that the operator does not have
    are left out.
    """
    record = get(op)
    host, _ = host_and_operator(recipe.model)
    operator_options = {name for operator in OPERATORS.values() for name in operator.options}
    args = {
        name: value
        for name, value in recipe.model.args.items()
        if name not in operator_options or name in record.options
    }
    return replace(recipe, model=replace(recipe.model, name=host, op=op, args=args))


def left_out(recipe: Recipe, op: str) -> dict[str, object]:
    """Operator options of the recipe that `op` does not have."""
    remaining_args = with_operator(recipe, op).model.args
    return {name: value for name, value in recipe.model.args.items() if name not in remaining_args}


def checked_operators(ops: Sequence[str]) -> list[str]:
    """The operators to compare.

    Raises:
        UsageError: an unknown one, one twice, or fewer than two.
    """
    names = [get(op).name for op in ops]
    if len(set(names)) != len(names) or len(names) < 2:
        raise UsageError(
            "a comparison takes at least two different operators, got "
            f"{', '.join(names) or 'none'}: for example --ops sima softmax"
        )
    return names


# a comparison gives landmarks and projected tokens a quarter of the patches: with as many as tokens
# nothing is approximated
SHARE = 4
FEW = ("landmarks", "projected")


def in_small_vit(recipe: Recipe) -> Recipe:
    """The recipe with a ViT in which operators are compared: its own, or the digits' small one with
    7 x 7 patches.

    A host with convolutions in its blocks (XCiT's local patch interaction) would do a part of the
    attention's work.

    Raises:
        UsageError: an image size that does not divide into 7 x 7 patches.
    """
    host, _ = host_and_operator(recipe.model)
    if host not in BUILT_HERE:
        return recipe
    pixels = recipe.data.image_size
    if not isinstance(pixels, int) or pixels % 7:
        raise UsageError(
            f"data.image_size={pixels}: the small ViT of a comparison takes 7 x 7 patches; choose "
            "one number, a multiple of 7"
        )
    small = get_recipe("digits").model
    return replace(
        recipe,
        model=replace(small, args={**small.args, "img_size": pixels, "patch_size": pixels // 7}),
    )


def in_comparison(recipe: Recipe, op: str) -> Recipe:
    """The recipe with an operator and, where it has landmarks or projected tokens, a quarter as
    many of them as patches.
    """
    chosen = with_operator(recipe, op)
    height, width = (
        side // int(recipe.model.args.get("patch_size", 16))
        for side in sides(recipe.data.image_size)
    )
    reduced = {name: max(1, height * width // SHARE) for name in FEW if name in get(op).options}
    return replace(chosen, model=replace(chosen.model, args={**chosen.model.args, **reduced}))


def settings(recipe: Recipe) -> str:
    """The options of the operator that a recipe sets, in words."""
    record = get(recipe.model.op or "softmax")
    chosen_options = {
        name: value for name, value in recipe.model.args.items() if name in record.options
    }
    return ", ".join(f"{name}={value}" for name, value in chosen_options.items())
