"""Numbers in sentences: with the right noun, and with the digits that say something."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun.

    >>> counted(1, "image"), counted(1200, "image"), counted(0, "class", "classes")
    ('1 image', '1,200 images', '0 classes')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def rate(per_second: float) -> str:
    """A rate with the digits that say something: never 0 for what moves.

    >>> rate(1234.5), rate(7.26), rate(0.0312), rate(0.0)
    ('1,234', '7.3', '0.031', '0')
    """
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"
