"""The docstrings of the operators' classes, written from their records: what `help(softless.SimA)`
shows.
"""

import re
import textwrap
from collections.abc import Iterator

from softless.attention.record import Operator

WIDTH = 96  # characters of a line; `help` indents it by four


def docstring(record: Operator) -> str:
    """Formula, options with defaults, errors, source and an example of an operator's module."""
    return "\n".join([
        *_wrapped(
            f"Multi-head self-attention by operator '{record.name}': (B, N, dim) -> (B, N, dim)."
        ),
        "",
        *_wrapped(f"The operator: {record.summary}."),
        "",
        f"    {record.formula}",
        "",
        *_wrapped(
            "The operator is fixed; the other arguments are those of `softless.Attention`, and "
            f"timm takes the class as `attn_layer=softless.{record.title}`."
        ),
        "",
        "Args:",
        "    dim: Width of the tokens.",
        "    num_heads: Number of heads; must divide dim unless attn_head_dim is given.",
        *_options(record),
        "    **arguments: Those of `softless.Attention`, but for op.",
        "",
        "Raises:",
        *_wrapped(
            "UsageError: an option that the operator does not have or a value that it does not "
            "take, sizes that do not divide.",
            "    ",
        ),
        "",
        *_source(record),
        "Examples:",
        *_example(record),
    ])


def _options(record: Operator) -> Iterator[str]:
    """Each option: its default, what it does, what it takes."""
    for name, option in record.options.items():
        yield from _wrapped(
            f"{name}: {option.says}. Takes {option.values}; {option.default!r} by default.", "    "
        )


def _source(record: Operator) -> list[str]:
    """The paper, as an address where it is on arXiv."""
    if not record.paper:
        return []
    source = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"https://arxiv.org/abs/\1", record.paper)
    return ["Source:", *_wrapped(source, "    "), ""]


def _example(record: Operator) -> list[str]:
    """A call of a new module on two images of five tokens: a class token and 2 x 2 patches."""
    tokens = ", tokens=5" if record.wants("tokens", {}) else ""
    grid = ", grid=(1, 2, 2)" if record.wants("grid", {}) else ""
    return [
        f"    >>> attention = softless.{record.title}(64, num_heads=4{tokens})",
        f"    >>> attention(torch.ones(2, 5, 64){grid}).shape",
        "    torch.Size([2, 5, 64])",
    ]


def _wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of a paragraph; those after the first are indented once more within a section."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=2 * indent,
        break_on_hyphens=False,
    )
