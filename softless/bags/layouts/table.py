"""All layouts, those that are known beyond doubt first."""

from softless.bags.files import Source
from softless.bags.layouts import clam, gigapath, mopadi, plain, slide2vec, stamp, trident
from softless.bags.layouts.layout import Layout
from softless.errors import DataError, unknown

LAYOUTS = {
    layout.name: layout
    for layout in (
        trident.LAYOUT,
        slide2vec.LAYOUT,
        stamp.LAYOUT,
        stamp.HISTORIC,
        clam.LAYOUT,
        mopadi.LAYOUT,
        gigapath.LAYOUT,
        plain.LAYOUT,
    )
}
# whose files say of themselves what they are, units included
CERTAIN = frozenset({trident.LAYOUT.name, slide2vec.LAYOUT.name, stamp.LAYOUT.name})


def layout_of(source: Source, name: str | None) -> Layout:
    """The layout that is named, or the first that recognises a file.

    Raises:
        UsageError: no layout has the name.
        DataError: the file says of itself that another tool wrote it.
    """
    by_itself = next(layout for layout in LAYOUTS.values() if layout.recognises(source))
    if name is None:
        return by_itself
    if name not in LAYOUTS:
        raise unknown("layout of features", name, tuple(LAYOUTS))
    if by_itself.name in CERTAIN and name != by_itself.name:
        raise DataError(
            f"{source.called} says by its attributes that {by_itself.tool} wrote it, and "
            f"layout='{name}' says another tool: leave layout= out"
        )
    return LAYOUTS[name]
