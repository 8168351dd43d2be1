"""Numbers for people."""

import math

MINUS = "\N{MINUS SIGN}"
THIN = "\N{NARROW NO-BREAK SPACE}"


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}{THIN}%"


def points(difference: float, digits: int = 1) -> str:
    """A difference of shares in percentage points, with its sign."""
    rounded = round(100 * difference, digits)
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else "±"
    return f"{sign}{abs(rounded):.{digits}f}"


def count(number: float) -> str:
    """Whole, with thin spaces between thousands."""
    return f"{round(number):,}".replace(",", THIN)


def short(number: float) -> str:
    """Three digits and a unit: 1.23 G, 45.6 M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{THIN}{unit}"
    return f"{number:.3g}"


def plain(number: float, digits: int = 4) -> str:
    """A tick label or table cell: as few digits as tell it, so many at most."""
    if number == 0 or not math.isfinite(number):
        return "0" if number == 0 else "not finite"
    if abs(number) < 1e-4 or abs(number) >= 1e5:
        mantissa, exponent = f"{number:.{digits - 2}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", MINUS)
    return f"{number:.{digits}g}".replace("-", MINUS)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours for people."""
    if seconds < 120:
        return f"{seconds:.0f}{THIN}s"
    minutes = round(seconds / 60)
    return (
        f"{minutes}{THIN}min"
        if minutes < 120
        else f"{minutes // 60}{THIN}h {minutes % 60}{THIN}min"
    )


def ratio(value: float, base: float) -> str:
    """How often `base` fits into `value`; both zero is equal."""
    if base == 0:
        return "=" if value == 0 else "–"
    return f"{value / base:.2f}×" if value else "none"


def size(number: float) -> str:
    """Bytes."""
    return f"{short(number)}B" if number >= 1000 else f"{number:.0f}{THIN}B"
