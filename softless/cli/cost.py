"""`softless cost`: what one forward pass of a model costs, counted."""

from softless.compare.papers import PaperTable, paper_table
from softless.errors import UsageError
from softless.exporting.names import refuse_file
from softless.measure.cost import Cost
from softless.measure.cost import cost as count
from softless.tasks.opened import model_and_size


def cost(
    model: str | None = None,
    input_size: int | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
    op: str | None = None,
    act: str | None = None,
    paper: str | None = None,
) -> Cost | PaperTable:
    """Count parameters, multiply-adds, exponentials and memory of one forward pass of one image.

    Nothing is computed, so any size is counted in a moment. The Python function
    softless.cost(model, input_size) takes a module.

    Args:
        model: the name of a model, or the folder of a run or of `save_weights`.
        input_size: side of the image in pixels; the model's own size without it.
        height: of an image that is not square, with width.
        width: of an image that is not square, with height.
        op: operator for a host (`softless cost deit_small_patch16_224 --op sima`).
        act: activation: gelu, relu, hard_swish or silu.
        paper: in place of a model, a table of a paper, its printed sizes beside the measured ones:
            sima-table1, sima-table2, sima-table3, sima-table4, soft-table2, soft-table3,
            soft-readme or soft-dense.

    Raises:
        UsageError: neither model nor paper, or both; unknown model, paper, operator or activation,
            a size the model refuses, height without width.
    """
    if paper is not None:
        if any(option is not None for option in (model, input_size, height, width, op, act)):
            raise UsageError(
                "--paper counts the models of a table as they stand there: leave the other "
                "options out"
            )
        return paper_table(paper)
    if model is None:
        raise UsageError(
            "name a model, the folder of a run, or a table with --paper, for example --paper "
            "sima-table1"
        )
    refuse_file(model, "cost", "its layers are operators of another runtime")
    return count(*model_and_size(model, op, act, size_of(input_size, height, width)))


def size_of(
    input_size: int | None, height: int | None, width: int | None
) -> int | tuple[int, int] | None:
    """The size that these options say."""
    if (height is None) != (width is None) or (height is not None and input_size is not None):
        raise UsageError("give --input-size for a square image, or --height and --width together")
    return (height, width) if height is not None and width is not None else input_size
