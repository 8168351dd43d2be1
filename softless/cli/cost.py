"""`softless cost`: what one forward pass of a model costs, counted."""

from torch import nn

from softless.benching.papers import PaperTable, paper_table
from softless.errors import UsageError, located
from softless.measure import Cost
from softless.measure import cost as count


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
        model: the name of a model, or the folder of a run.
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
    return count(*counted_of(model, op, act, size_of(input_size, height, width)))


def size_of(
    input_size: int | None, height: int | None, width: int | None
) -> int | tuple[int, int] | None:
    """The size that these options say."""
    if (height is None) != (width is None) or (height is not None and input_size is not None):
        raise UsageError("give --input-size for a square image, or --height and --width together")
    return (height, width) if height is not None and width is not None else input_size


Size = int | tuple[int, ...] | None


def counted_of(model: str, op: str | None, act: str | None, size: Size) -> tuple[nn.Module, Size]:
    """The model of a name or of a run's folder, and the size at which it is looked at: a run's own
    where none is given.
    """
    from softless.models import create_model
    from softless.tasks.loaded import load_run

    if located(model).is_dir():
        if op or act:
            raise UsageError(
                f"'{model}' is a run: its operator and activation are its own; --op and --act go "
                "with the name of a model"
            )
        run = load_run(model)
        return run.model, size or (run.in_chans, *run.pixels)
    network = create_model(model, op=op, act=act)
    # timm's own ViT, built for one size
    if size is not None and getattr(network, "dynamic_img_size", None) is False:
        network = create_model(model, op=op, act=act, dynamic_img_size=True)
    return network, size
